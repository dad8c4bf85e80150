# Makes .venv with this package and the extras named in $1; sourced by the two commands. Safe to run again.
# Any Python >= 3.11 that has venv will do: PYTHON=/path/to/python ./scripts/quickstart.sh

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "secure_fed needs Python 3.11, 3.12 or 3.13; none found. Set PYTHON=/path/to/python" >&2
  return 2
}

make_environment() {
  local extras="$1" stamp=.venv/installed"$1" python
  # Flower must neither call home nor install anything by itself.
  export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 RAY_USAGE_STATS_ENABLED=0
  if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ]; then
    return
  fi
  python="$(find_python)"
  echo "environment: .venv ($("$python" --version)), about 5 GB on the first run"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet --editable ".$extras"
  touch "$stamp"
}
