"""Images in buckets and on web servers: gs://, s3://, az://, https://.

    bucket.py   what lies below an address, and byte ranges of it: the one module that knows the library (obstore)
    cache.py    what was read, kept in a local folder
    files.py    sources of image files, and an .npz
    archives.py tar and Parquet shards, as data/shards.py has those of this machine
    shards.py   records of TFRecord files by position; array_record.py: of array_record files

A reader of another format needs bucket.py alone: `opened(address, cache)`, then `.list(prefix)` for `Object`s (name,
size, version) and `.read(object, start, length)` for bytes, from as many threads as it likes.
"""
