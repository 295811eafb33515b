#!/data/data/com.termux/files/usr/bin/bash
# Runs the client with a wake lock, training only while the phone charges and is on Wi-Fi.
set -euo pipefail
# shellcheck source=/dev/null
source "$HOME/.config/motley/client.env"
termux-wake-lock
trap termux-wake-unlock EXIT
read -r -a options <<<"${OPTIONS:-}"
# Android ends programs that it finds too hungry: start again, unless options, refusal or certificate say no.
while true; do
    status=0
    "$HOME/motley/bin/fedclient" start --name "$NAME" --data "$DATA" \
        --only-when charging,unmetered "${options[@]}" || status=$?
    case $status in
    0 | 2 | 3 | 5) exit "$status" ;;
    esac
    sleep 30
done
