#!/usr/bin/env bash
# Pre-training on Cloud TPU VMs, from nothing to a finished run, over preemptions. From the top of the repository:
#
#   export NAME=barlow ZONE=us-west4-a ACCELERATOR=v5litepod-32 RUNTIME=v2-alpha-tpuv5-lite
#   export DATA=gs://BUCKET RUNS=10.0.0.2:/runs   # or no RUNS, and below --workdir=gs://BUCKET/runs/r50
#   deploy/tpu_vm.sh run train --config=barlow_twins --config.data.path=/data/imagenet --workdir=/runs/r50
#   deploy/tpu_vm.sh delete
#
# run LINE       all of the following up to watch; where the line runs already, watch alone
# create         asks for the machine as a queued resource, and waits for it
# install        this checkout and jax[tpu], in an environment of their own, on all hosts
# data           DATA at /data (mounted; copied with STAGE=1), RUNS at /runs, on all hosts
# start LINE     starts `barlow-jax LINE` on all hosts
# watch LINE     until it has ended; a machine that was preempted is made anew and the same line started, which goes on
# log            the last lines of process 0
# stop           asks the run to save and to end
# delete         gives the machine back
#
# DRY_RUN=1 prints every line of gcloud and runs none. SPOT=0 asks for a machine that is not preempted. SLICES=2 takes two
# slices, over the network of the data centre. PROJECT, SERVICE_ACCOUNT, JAX, POLL (seconds) and RESTARTS may be set too.
set -euo pipefail
exec 3>&2 # where a dry run shows its lines, also inside $(...)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
NAME=${NAME:-barlow} ZONE=${ZONE:-} PROJECT=${PROJECT:-} ACCELERATOR=${ACCELERATOR:-} RUNTIME=${RUNTIME:-}
SPOT=${SPOT:-1} SLICES=${SLICES:-1} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-} JAX=${JAX:-0.10.2}
DATA=${DATA:-} STAGE=${STAGE:-0} RUNS=${RUNS:-} POLL=${POLL:-60} RESTARTS=${RESTARTS:-20} DRY_RUN=${DRY_RUN:-0}

say() { echo "$(date '+%Y-%m-%d %H:%M:%S') $*" >&2; }

fail() {
    echo "error: $*" >&2
    exit 1
}

# gcloud compute tpus, in the zone and project.
tpus() {
    local words=(gcloud compute tpus "$@" "--zone=$ZONE")
    if [[ -n $PROJECT ]]; then words+=("--project=$PROJECT"); fi
    if [[ $DRY_RUN == 1 ]]; then
        printf '%q ' "${words[@]}" >&3
        echo >&3
    else
        "${words[@]}"
    fi
}

nodes() {
    if ((SLICES == 1)); then echo "$NAME"; else seq -f "$NAME-%g" 0 $((SLICES - 1)); fi
}

# A command on all hosts of all slices.
everywhere() {
    local node
    for node in $(nodes); do tpus tpu-vm ssh "$node" --worker=all --command="$1" || return; done
}

# State of the request, NONE where there is none, UNKNOWN where gcloud fails; $1 is what a dry run takes it to be.
state() {
    local found
    if ! found=$(tpus queued-resources describe "$NAME" --format="value(state.state)" 2>&1); then
        if [[ $found == *NOT_FOUND* ]]; then found=NONE; else found=UNKNOWN; fi
    fi
    if [[ $DRY_RUN == 1 ]]; then found=$1; fi
    tail -n 1 <<< "$found"
}

create() {
    local now words
    now=$(state NONE)
    case $now in
        SUSPENDED | SUSPENDING | FAILED)
            say "$NAME is $now: it is made anew"
            delete
            now=NONE
            ;;
    esac
    if [[ $now == NONE ]]; then
        words=("--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
        if ((SLICES == 1)); then words+=("--node-id=$NAME"); else words+=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
        if [[ $SPOT == 1 ]]; then words+=(--spot); fi
        if [[ -n $SERVICE_ACCOUNT ]]; then words+=("--service-account=$SERVICE_ACCOUNT"); fi
        tpus queued-resources create "$NAME" "${words[@]}"
    fi
    while now=$(state ACTIVE) && [[ $now != ACTIVE ]]; do # UNKNOWN among others
        case $now in
            FAILED | SUSPENDED | NONE) fail "$NAME was not made, its request is $now: gcloud compute tpus queued-resources describe $NAME --zone=$ZONE says why." ;;
        esac
        say "$NAME is $now"
        sleep "$POLL"
    done
}

install() {
    local archive node
    archive=$(mktemp --suffix=.tar.gz)
    tar -C "$ROOT" -czf "$archive" --exclude=__pycache__ \
        barlow_jax configs train.py linear_eval.py pyproject.toml requirements.txt README.md LICENSE
    for node in $(nodes); do tpus tpu-vm scp "$archive" "$node:barlow.tar.gz" --worker=all; done
    rm "$archive"
    # The machines' own Python is older than 3.11.
    everywhere "set -e; mkdir -p ~/barlow; cd ~/barlow; rm -rf source env; mkdir source; tar -xzf ~/barlow.tar.gz -C source
        python3 -m pip install --quiet --user uv; uv=~/.local/bin/uv
        \$uv venv --quiet --python 3.11 env; \$uv pip install --quiet --python env/bin/python 'jax[tpu]==$JAX' './source[buckets]'"
}

data() {
    local bucket=${DATA#gs://} commands="set -e"
    if [[ -n $DATA ]]; then
        commands+="; sudo mkdir -p /data; sudo chown \$USER /data"
        if [[ $STAGE == 1 ]]; then
            commands+="; gcloud storage rsync --recursive $(printf '%q' "$DATA") /data"
        else
            local only=""
            if [[ $bucket == */* ]]; then only="--only-dir $(printf '%q' "${bucket#*/}")"; fi
            commands+="
                if ! command -v gcsfuse > /dev/null; then
                    key=/usr/share/keyrings/cloud.google.asc
                    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee \$key > /dev/null
                    echo \"deb [signed-by=\$key] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -c -s) main\" |
                        sudo tee /etc/apt/sources.list.d/gcsfuse.list
                    sudo apt-get update -q && sudo apt-get install -q -y gcsfuse
                fi
                mountpoint -q /data || gcsfuse --implicit-dirs -o ro $only $(printf '%q' "${bucket%%/*}") /data"
        fi
    fi
    if [[ -n $RUNS ]]; then
        commands+="
            command -v mount.nfs > /dev/null || { sudo apt-get update -q && sudo apt-get install -q -y nfs-common; }
            sudo mkdir -p /runs; mountpoint -q /runs || sudo mount -t nfs $(printf '%q' "$RUNS") /runs"
    fi
    everywhere "$commands"
}

start() {
    # A run that was stopped by a signal is not at its end: status 75 has it started again.
    if [[ $1 == train && "$*" != *--stopped_status* ]]; then set -- "$@" --stopped_status=75; fi
    local line
    line=$(printf ' %q' "$@")
    line="env/bin/barlow-jax$line; echo \$? > status"
    everywhere "cd ~/barlow && rm -f status && { setsid nohup bash -c $(printf '%q' "$line") >> run.log 2>&1 < /dev/null & echo \$! > pid; }"
}

# For each host: running, its exit status, or lost, where it was never started or the machine has booted since.
statuses() {
    # shellcheck disable=SC2016 # it is for the hosts to expand
    everywhere 'cd ~/barlow && cat status || { kill -0 "$(cat pid)" && echo running; } || echo lost' 2> /dev/null |
        grep -xE '[0-9]+|running|lost' || true
    if [[ $DRY_RUN == 1 ]]; then echo 0; fi
}

preempted() {
    local node
    case $(state ACTIVE) in ACTIVE | UNKNOWN) ;; *) return 0 ;; esac
    for node in $(nodes); do # the request may be told later than its machines
        case $(tpus tpu-vm describe "$node" --format="value(state)" 2> /dev/null) in
            PREEMPTED | TERMINATED | STOPPED) return 0 ;;
        esac
    done
    return 1
}

prepare_and_start() {
    create
    install
    data
    start "$@"
}

watch() {
    local found one restarts=0
    while :; do
        if preempted; then
            say "$NAME was preempted: a new machine, and the same line goes on"
            if [[ $(state SUSPENDED) != NONE ]]; then delete; fi
            prepare_and_start "$@"
            restarts=0
        fi
        found=$(statuses | sort -u | xargs)
        case $found in
            0)
                say "finished"
                return
                ;;
            "") say "$NAME does not answer" ;;
            *running*) ;;
            *)
                for one in $found; do
                    case $one in
                        0 | 6 | 75 | lost) ;; # 6: without the others; 75: stopped by a signal, and saved
                        *)
                            log
                            fail "the run has ended with status $one; see to what its log says, and start the same line again."
                            ;;
                    esac
                done
                if ((++restarts > RESTARTS)); then fail "the run has ended with $found after $RESTARTS starts on one machine."; fi
                say "the run has ended with $found: it is started again"
                start "$@"
                ;;
        esac
        sleep "$POLL"
    done
}

run() {
    if [[ -z $RUNS && "$*" != *--workdir=*://* ]]; then
        fail "RUNS is not set: a work folder on the machine's own disk goes with it; set RUNS=HOST:/SHARE, an NFS share, or take --workdir=gs://BUCKET/FOLDER."
    fi
    create
    if [[ $(statuses) != *running* ]]; then prepare_and_start "$@"; fi
    watch "$@"
}

log() { tpus tpu-vm ssh "$(nodes | head -n 1)" --worker=0 --command="tail -n 40 ~/barlow/run.log"; }

# The process of our line, in the session that was made for it.
# shellcheck disable=SC2016 # it is for the hosts to expand
stop() { everywhere 'pkill -TERM -s "$(cat ~/barlow/pid)" barlow-jax || true'; }

delete() { tpus queued-resources delete "$NAME" --force --quiet; }

word=${1:-}
shift || true
case $word in
    run | start | watch) (($#)) || fail "$word needs a line, such as: $word train --config=barlow_twins --workdir=/runs/r50" ;;
    create | install | data | log | stop | delete) ;;
    *)
        sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit $((${#word} > 0))
        ;;
esac
[[ -n $ZONE ]] || fail "ZONE is not set; set the zone of the machine, such as ZONE=us-west4-a."
case $word in
    run | create | watch)
        [[ -n $ACCELERATOR && -n $RUNTIME ]] || fail "ACCELERATOR or RUNTIME is not set; set both, such as ACCELERATOR=v5litepod-32 RUNTIME=v2-alpha-tpuv5-lite."
        ;;
esac
"$word" "$@"
