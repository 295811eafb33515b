#!/data/data/com.termux/files/usr/bin/sh
# Termux:Boot runs this when the phone has started.
mkdir -p "$HOME/.cache"
exec "$HOME/motley/bin/motley-run" >>"$HOME/.cache/motley.log" 2>&1
