#!/bin/sh
# Writes a join token for each client named into FOLDER/NAME, once: tokens.sh FOLDER NAME ...
# Needs the data directory of a server that runs, for its control socket.
set -eu
umask 077
folder=$1
shift
for name in "$@"; do
    [ -e "$folder/$name" ] && continue
    fedserver tokens create --client "$name" --lifetime 1h --json --data "$MOTLEY_DATA" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["token"])' >"$folder/.$name"
    mv "$folder/.$name" "$folder/$name"
done
