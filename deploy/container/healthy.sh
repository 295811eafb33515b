#!/bin/sh
# Whether the daemon that holds the state directory lives.
set -eu
read -r process <"$MOTLEY_STATE/lock"
exec grep -q fedclient "/proc/$process/cmdline"
