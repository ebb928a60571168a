"""What a train step needs beside the method: micro-batches, steps that are not finite, float16's loss scale."""
