#!/usr/bin/env bash
# Starts one part of a deployment on a TPU host: docs/deploy.md. Further settings are TRIPTYCH_ variables, or flags after the part's name.
#
#   start.sh host        everything on this host: scheduler, gateway, and one process that owns its chips and runs every instance
#   start.sh scheduler   the scheduler (any machine)
#   start.sh gateway     a gateway (any machine); needs SCHEDULER=host:port
#   start.sh http        OpenAI's HTTP API before a gateway (any machine); GATEWAY=host:port (default 127.0.0.1:8431)
#   start.sh prefill     a worker with one prefill instance over all chips of this host; needs SCHEDULER=host:port
#   start.sh decode      the same for decode
#
# An instance over several hosts: start `prefill` or `decode` on each with HOSTS, HOST_INDEX (0 leads) and LEADER=host:port; the instance takes TP chips
# of all hosts together (default: all). In the pods of a LeaderWorkerSet the three are known.
#
# MODEL      what to serve (default smollm2)                 TOPOLOGY   of `host` (default 1P1D)
# TP         chips an instance (prefill, decode: all)        LISTEN     address at which others reach this machine (default: its first)
# PORT       gateway 8431, scheduler 8430                    HTTP_PORT  of OpenAI's API (default 8000)
set -euo pipefail

part=${1:?usage: start.sh host|scheduler|gateway|http|prefill|decode [flags]}
shift
listen=${LISTEN:-$(hostname -I 2>/dev/null | cut -d' ' -f1)}
model=(--model "${MODEL:-smollm2}")
# JAX's kernel reads KV at the speed of the memory; the reference is plain JAX.
tpu=(--device tpu --attention tpu)

chips() {
    local found=(/dev/accel[0-9]* /dev/vfio/[0-9]*) count=0 path
    for path in "${found[@]}"; do [[ -e $path ]] && count=$((count + 1)); done
    (( count )) || { echo "start.sh: no TPU chips under /dev; name their number with TP" >&2; exit 1; }
    echo "$count"
}

worker() {
    local tp count=${HOSTS:-${LWS_GROUP_SIZE:-1}} shared=()
    if (( count > 1 )); then
        local index=${HOST_INDEX:-${LWS_WORKER_INDEX:?HOST_INDEX, which of the HOSTS this is, is missing}}
        local leader=${LEADER:-${LWS_LEADER_ADDRESS:?LEADER=host:port of host 0 is missing}}
        [[ $leader == *:* ]] || leader=$leader:8440
        shared=(--hosts "$count" --host-index "$index" --leader "$leader")
    fi
    tp=${TP:-$(( $(chips) * count ))}
    exec triptych worker --scheduler "${SCHEDULER:?SCHEDULER=host:port is missing}" --listen "$listen" --roles "$1" \
        --name "$1-$(hostname)" --tp "$tp" "${shared[@]}" "${model[@]}" "${tpu[@]}" "${@:2}"
}

case $part in
    host)
        # The chips of a host belong to one process; KV moves inside it.
        exec triptych serve "${model[@]}" "${tpu[@]}" --processes one --topology "${TOPOLOGY:-1P1D}" --tp "${TP:-1}" \
            --host 0.0.0.0 --port "${PORT:-8431}" --http-port "${HTTP_PORT:-8000}" "$@" ;;
    scheduler)
        exec triptych scheduler --host 0.0.0.0 --port "${PORT:-8430}" "${model[@]}" "$@" ;;
    gateway)
        exec triptych gateway --scheduler "${SCHEDULER:?SCHEDULER=host:port is missing}" --host 0.0.0.0 --port "${PORT:-8431}" \
            "${model[@]}" "$@" ;;
    http)
        exec triptych http --target "${GATEWAY:-127.0.0.1:8431}" --host 0.0.0.0 --port "${HTTP_PORT:-8000}" "$@" ;;
    prefill | decode)
        worker "$part" "$@" ;;
    *)
        echo "start.sh: no part ${part@Q}; expected host, scheduler, gateway, http, prefill or decode" >&2
        exit 2 ;;
esac
