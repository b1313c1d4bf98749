#!/bin/sh
# The browser tests drive a real Chromium. Installs Debian's, or says what to do.
set -eu
if ! command -v apt-get >/dev/null; then
  echo "The browser tests need Chromium: install it with this system's package manager." >&2
  exit 1
fi
if [ "$(id -u)" -eq 0 ]; then as_root=; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=sudo; else
  echo "The browser tests need Chromium: run 'sudo apt-get install chromium' and try again." >&2
  exit 1
fi
echo "Installing Chromium for the browser tests (once) ..."
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null
