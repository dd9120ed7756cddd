#!/usr/bin/env bash
# bash run.sh KEY=VALUE …   sets up .venv once, then runs synth or the tests.
#
# MODE=demo      all steps on made-up patients, in minutes, to runs/demo/report.html (the default)
# MODE=study     all steps on your patients (DATA_DIR), fold by fold
# MODE=phantom   write a cohort of made-up patients to OUTPUT_DIR
# MODE=check     check a data folder (DATA_DIR)
# MODE=train     train the family MODEL, e.g. MODEL=wdm3d
# MODE=c_train   train the inpainting model; CHANNELS=t1n,t2f are painted together
# MODE=c_sample  inpaint healthy tissue in DATA_DIR, with the model of RUN_DIR or MODEL
# MODE=masks     place new healthy masks, or tumours (KIND=tumour), in the brains of DATA_DIR
# MODE=sample    draw four scans for the label maps of LABELS
# MODE=segment   find WT, TC and ET in the scans of DATA_DIR
# MODE=test      the tests without the slow ones; MODE=test_all all; MODE=lint ruff, ty and known holes of packages
# MODE=setup     only set up; EXTRAS=dev,cluster adds optional parts
#
# Each verb of synth is a mode, and each of its options a key: --batch-size 4 is BATCH_SIZE=4. Further keys:
# PYTHON=python3.11 makes .venv with this interpreter; DEVICE=cpu or cuda chooses the build of torch.
# After the first set-up, .venv/bin/synth VERB --help explains the options. BEG and END are the first case,
# from 0, and the case to stop before. These keys have other names than their options:

set -euo pipefail # works with bash 3.2 and up
set -f            # no word here is a file pattern
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=$ROOT/.venv
PY=$VENV/bin/python
export PYTHONSAFEPATH=1 # code in the current folder is not ours
HOLES=https://api.osv.dev
CPU_TORCH=https://download.pytorch.org/whl/cpu
ALIASES='DATA_DIR=data DATA_SPLIT_JSON=split JSON_FILE=split OUTPUT_DIR=out SAVE_FOLDER=out RUN_DIR=out
MODEL_PATH=model ITERATIONS=steps SAMPLING_STEPS=steps CHANNELS=modalities TRAIN_MODE=mode BEG=begin
NEW_CASES_PER_CASE=per-case'

die() { # die SENTENCE [EXIT_CODE]
  printf 'run.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

make_venv() { # make_venv MEGABYTES, with the first interpreter of a version that the pinned wheels exist for
  local python free
  for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python} ''; do
    ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || break
  done
  [ -n "$python" ] || die "needs Python 3.11, 3.12 or 3.13${PYTHON:+, and $PYTHON is none}: PYTHON=/path/to/python3.11 names one"
  rm -rf "$VENV"
  free=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1024) }')
  [ "$free" -ge "$1" ] || die "the disk is too full: $free MB are free in $ROOT and the setup needs about $1 MB"
  echo "run.sh: making .venv with $("$python" -V) (once, some minutes)" >&2
  "$python" -m venv "$VENV" >&2 || die "$python cannot make a venv, see above (Debian, Ubuntu: apt install python3-venv)"
}

install_all() { # install_all INDEX_OF_TORCH PROJECT: that index answers for torch alone, core.lock has the hashes
  local pip=("$PY" -m pip install) torch
  torch=$(grep '^torch==' constraints.txt)
  [ -z "$1" ] || "${pip[@]}" --no-deps --index-url "$1" "$torch" || return
  "${pip[@]}" --no-deps --require-hashes -r core.lock || return
  PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt "${pip[@]}" -c constraints.txt pip -e "$2"
}

set_up() { # set_up EXTRA,…: when this returns, .venv holds them
  local state=$VENV/.setup stamp='' have='' extra wanted fingerprint index='' megabytes=3000 out
  # The state is "FINGERPRINT EXTRAS" of the last set-up that worked; without it, .venv is half made.
  [ ! -f "$state" ] || read -r stamp have <"$state" || true
  fingerprint=$({ echo "$ROOT" && cat "$ROOT"/{pyproject.toml,constraints.txt,core.lock}; } | cksum | tr ' ' -)
  wanted=${have:-core}
  for extra in ${1//,/ }; do
    case ",$wanted," in *",$extra,"*) ;; *) wanted=$wanted,$extra ;; esac
  done
  if [ "$stamp $have" = "$fingerprint $wanted" ] &&
    "$PY" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))' 2>/dev/null; then return; fi

  case $DEVICE in cuda*) ;; cpu) index=$CPU_TORCH ;; *) nvidia-smi -L >/dev/null 2>&1 || index=$CPU_TORCH ;; esac
  if [ "$(uname -s)" != Linux ]; then index=''; elif [ -z "$index" ]; then megabytes=12000; fi
  if [ -z "$stamp" ] || ! "$PY" -m pip --version >/dev/null 2>&1; then
    make_venv "$megabytes"
  elif [ "$stamp" != "$fingerprint" ]; then
    echo "changing $have" >"$state"
  fi
  if [ -n "$index" ]; then
    echo 'run.sh: no NVIDIA GPU here, so torch for the CPU (DEVICE=cuda asks for the other)' >&2
    "$PY" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=3)" 2>/dev/null || index=''
  fi
  wanted=${wanted#core}
  # The pins hold for build backends too: by PIP_CONSTRAINT before pip 25.3, by PIP_BUILD_CONSTRAINT since.
  if ! out=$(cd "$ROOT" && install_all "$index" ".${wanted:+[${wanted#,}]}" 2>&1 |
    tee >(grep --line-buffered -E 'Downloading.*[MG]B|^Installing' | cut -c -90 >&2)); then
    printf '%s\n' "$out" | tail -20 >&2
    case $out in
      *"No space left"* | *"quota exceeded"*) die "the disk is full: make room in $ROOT and ${TMPDIR:-/tmp}, then try again" ;;
      *"connection broken"* | *ConnectionError* | *"timed out"* | *"name resolution"*)
        die 'no network: the package index does not answer; run the same command when it does' ;;
    esac
    die 'pip failed, see above; the same command tries again'
  fi
  echo "$fingerprint core$wanted" >"$state.new" && mv "$state.new" "$state"
}

audit() { # known holes of the pinned packages; where no database answers, a word instead
  if "$PY" -c "import urllib.request as u; u.urlopen('$HOLES/v1/vulns/OSV-2020-111', timeout=5)" 2>/dev/null; then
    "$PY" -m pip_audit --vulnerability-service osv --disable-pip --no-deps --requirement constraints.txt
  else
    echo "run.sh: $HOLES does not answer, so the packages were not searched for known holes" >&2
  fi
}

MODE=demo PYTHON='' EXTRAS='' DEVICE='' given=() # only from the command line, not from the environment
for word in "$@"; do
  case $word in
    -h | --help) MODE='help' ;;
    MODE=* | PYTHON=* | EXTRAS=*) printf -v "${word%%=*}" %s "${word#*=}" ;;
    [A-Z]*=*) given+=("$word") && case $word in DEVICE=*) DEVICE=${word#*=} ;; esac ;;
    *) die "'$word' is not KEY=VALUE; MODE=help lists the modes" 2 ;;
  esac
done

verb=("$MODE") first='' # the key of the verb's argument that has no --name
case $MODE in
  help) sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && echo "$ALIASES" && exit ;;
  c_train) verb=(train wdm3d) ALIASES="$ALIASES NOISE_SCHEDULE=schedule" ;;
  c_sample) verb=(inpaint) first=DATA_DIR ALIASES="$ALIASES RUN_DIR=model" ;;
  study | check | masks | segment) first=DATA_DIR ;;
  phantom) first=OUTPUT_DIR ;;
  train) first=MODEL ;;
  sample) first=LABELS ;;
  test | test_all | lint) EXTRAS=dev,$EXTRAS ALIASES=WORKERS=numprocesses ;;
esac
options=()
for word in ${given[@]+"${given[@]}"}; do
  key=${word%%=*} value=${word#*=} name=$(printf %s "${word%%=*}" | tr '[:upper:]_' '[:lower:]-')
  for pair in $ALIASES; do [ "$key" != "${pair%%=*}" ] || name=${pair#*=}; done
  case $word in
    "$first"=*) verb+=("$value") ;;
    "$key=" | FROM_SCRATCH=0) ;;
    FROM_SCRATCH=1) options+=("--$name") ;;
    MODELS=* | CLUSTER=*) options+=("--$name" ${value//,/ }) ;; # the other lists are split by synth
    *) options+=("--$name" "$value") ;;
  esac
done

set_up "$EXTRAS"
case $MODE in
  setup) exit ;;
  lint) cd "$ROOT" && "$PY" -m ruff check . && "$PY" -m ruff format --check . && "$PY" -m ty check --python "$VENV" && audit; exit ;;
  test) options=(-m 'not slow' ${options[@]+"${options[@]}"}) ;;
  test_all) ;;
  *) exec "$PY" -m synth "${verb[@]}" ${options[@]+"${options[@]}"} ;;
esac
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 # the processes share the cores already
cd "$ROOT" && exec env -u PYTHONSAFEPATH "$PY" -m pytest --numprocesses logical --maxprocesses 8 ${options[@]+"${options[@]}"}
