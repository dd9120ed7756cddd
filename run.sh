#!/usr/bin/env bash
# bash run.sh KEY=VALUE …   sets up .venv once, then calls `python -m synth …` or the tests.
# bash run.sh MODE=help     lists the modes and their keys. Works with bash 3.2 and up.
# shellcheck disable=SC2016,SC2086,SC2206 # awk's $1 is in single quotes; lists of words are split on purpose
set -euo pipefail
set -f # no word here is a file pattern
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=$ROOT/.venv
PY=$VENV/bin/python
CPU_TORCH=https://download.pytorch.org/whl/cpu

# One line a mode: name | extra it needs | command | keys | what it does.
# KEY:--flag is passed on if given, KEY:--flag+ as several words, KEY:--flag? alone if it is 1;
# a bare KEY must be given.
TRAIN='DATA_DIR:--data DATA_SPLIT_JSON:--split FOLD:--fold PRESET:--preset ITERATIONS:--steps BATCH_SIZE:--batch-size SEED:--seed DEVICE:--device WORKERS:--workers RUN_DIR:--out RESUME:--resume'
MODES=(
  'demo     | core | synth demo        | OUTPUT_DIR:--out CASES:--cases FROM_SCRATCH:--from-scratch? SEED:--seed WORKERS:--workers DEVICE:--device | the whole story on made-up patients, in minutes, to runs/demo/report.html (default)'
  'study    | core | synth study       | DATA_DIR OUTPUT_DIR:--out DATA_SPLIT_JSON:--split FOLD:--fold FOLDS:--folds PRESET:--preset FROM_SCRATCH:--from-scratch? LAUNCHER:--launcher SHARDS:--shards CLUSTER:--cluster+ SEED:--seed WORKERS:--workers DEVICE:--device | the same story on your data: fold by fold, nothing leaking'
  'phantom  | core | synth phantom     | OUTPUT_DIR CASES:--cases SIZE:--size SEED:--seed WORKERS:--workers | write a demo cohort'
  'check    | core | synth check       | DATA_DIR | examine a data folder'
  "train    | core | synth train       | MODEL $TRAIN | train the family MODEL, e.g. MODEL=wdm3d"
  "c_train  | core | synth train wdm3d | TRAIN_MODE:--mode NOISE_SCHEDULE:--schedule CHANNELS:--modalities+ $TRAIN | train the conditional inpainting model"
  'c_sample | core | synth inpaint     | DATA_DIR MASK:--mask SEG:--seg BRAIN:--brain CONTRASTS:--contrasts+ MODEL:--model RUN_DIR:--model OUTPUT_DIR:--out ESTIMATE:--estimate SAMPLES:--samples SAMPLING_STEPS:--steps STEPS_SCHEDULER:--steps-scheduler TRAIN_MODE:--mode NOISE_SCHEDULE:--noise-schedule BEG:--begin END:--end SEED:--seed DEVICE:--device | inpaint healthy tissue'
  'masks    | core | synth masks       | DATA_DIR JSON_FILE:--split SAVE_FOLDER:--out OUTPUT_DIR:--out MODEL_PATH:--model ONLY_REAL_SEG:--only-real-seg ONLY_FAKE_SEG:--only-fake-seg BEGIN:--begin END:--end NEW_CASES_PER_CASE:--per-case KIND:--kind SEED:--seed WORKERS:--workers | place new healthy masks, or tumours, in brains'
  'sample   | core | synth sample      | LABELS LORA:--lora+ MODEL:--model OUTPUT_DIR:--out BRAIN:--brain SCHEME:--scheme SAMPLES:--samples SAMPLING_STEPS:--steps SAMPLER:--sampler GUIDANCE:--guidance DATA_SPLIT_JSON:--split APPEND_TO:--append-to FOLD:--fold DATA_DIR:--data BEG:--begin END:--end SEED:--seed DEVICE:--device | draw four scans for label maps, as a site would have scanned them'
  'segment  | core | synth segment     | DATA_DIR MODELS:--models+ OUTPUT_DIR:--out WEIGHTS:--weights+ THRESHOLDS:--thresholds+ MIN_ML:--min-ml+ OVERLAP:--overlap SCHEME:--scheme BEG:--begin END:--end SHARD:--shard DEVICE:--device | find WT, TC and ET in scans'
  'test     | dev  | fast_tests        | WORKERS:--numprocesses | the tests, without the slow proofs'
  'test_all | dev  | all_tests         | WORKERS:--numprocesses | all tests'
  'lint     | dev  | lint              | | ruff and ty'
  'setup    | core | true              | EXTRAS:- DEVICE:- | only set up; EXTRAS=dev,cluster adds optional parts'
  'help     | none | show_help         | | this list'
)

die() { # die SENTENCE [EXIT_CODE]
  printf 'run.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

nearest() { # nearest WORD CANDIDATE…: the candidate that shares most pairs of letters, upper case or lower
  printf '%s\n' "$@" | awk '
    NR == 1 { word = toupper($0); next }
    { other = toupper($0); score = 0
      for (i = 1; i < length(word); i++) if (index(other, substr(word, i, 2))) score += 2
      score /= length(word) + length(other)
      if (NR == 2 || score > most) { best = $0; most = score } }
    END { print best }'
}

columns() { printf '%s\n' "${MODES[@]}" | awk -F ' *[|] *' "$1"; } # columns AWK: over the table of modes

show_help() {
  echo 'bash run.sh KEY=VALUE …     e.g. bash run.sh MODE=c_train DATA_DIR=data/train PRESET=tiny'
  columns '{ gsub(/:[^ ]*/, "", $4); printf "\nMODE=%-9s %s\n", $1, $5; if ($4) print "  " $4 }'
  printf '\nWords for keys that do not speak for themselves:
  BEG, END            the first case (0), and the one to stop before
  SHARD               i/n: the i-th of n shares of the cases, from 0
  CHANNELS            contrasts that one model learns to paint together, e.g. t1n,t2f
  CONTRASTS           contrasts to paint, by a model for any contrast
  STEPS_SCHEDULER     word of Local-Synthesis for the sampler: DPM_plus_plus_2M_Karras, linear
  MIN_ML              WT,TC,ET: components below so many millilitres are dropped

PYTHON=/path/to/python3.11 names the interpreter to make .venv with; DEVICE=cpu or cuda chooses
the build of torch when it is made. .venv/bin/synth VERB --help explains the values.\n'
}

synth() { exec "$PY" -m synth "$@"; }
lint() {
  cd "$ROOT" && "$PY" -m ruff check . && "$PY" -m ruff format --check . && "$PY" -m ty check --python "$VENV"
}
fast_tests() { all_tests -m 'not slow' "$@"; }
all_tests() { # one thread a process: the processes share the cores already
  export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
  cd "$ROOT" && exec "$PY" -m pytest --numprocesses logical --maxprocesses 8 "$@"
}

find_python() { # sets python to the first interpreter of a version that the pinned wheels exist for
  local candidate version seen=
  if [ -n "${PYTHON-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11 python; fi
  for candidate in "$@"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in 3.11 | 3.12 | 3.13) python=$candidate && return ;; esac
    seen="$seen${seen:+, }$candidate is $version"
  done
  die "needs Python 3.11, 3.12 or 3.13, but ${seen:-there is no $*}: install one, or name it with PYTHON=/path/to/python3.11"
}

set_up() { # set_up EXTRA,…: when this returns, .venv holds them
  local state=$VENV/.setup stamp='' have='' python='' extra extras wanted fingerprint index='' need_mb=3000 free_mb out
  # The state is "building" (half made: start anew), "upgrading …", or "FINGERPRINT EXTRAS".
  if [ -f "$state" ]; then read -r stamp have <"$state" || true; fi
  fingerprint=$({ echo "$ROOT" && cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt"; } | cksum | tr ' ' -)
  wanted=${have:-core}
  for extra in ${1//,/ }; do
    case ",$wanted," in *",$extra,"*) ;; *) wanted=$wanted,$extra ;; esac
  done
  if [ "$stamp $have" = "$fingerprint $wanted" ] &&
    "$PY" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("torch"))' 2>/dev/null; then return; fi

  case ${DEVICE:-auto} in
    cuda*) ;;
    cpu) index=$CPU_TORCH ;;
    *) nvidia-smi -L >/dev/null 2>&1 || index=$CPU_TORCH ;;
  esac
  if [ "$(uname -s)" != Linux ]; then index=''; elif [ -z "$index" ]; then need_mb=12000; fi

  if [ "$stamp" = building ] || ! "$PY" -m pip --version >/dev/null 2>&1; then
    find_python
    rm -rf "$VENV"
    free_mb=$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free_mb" -ge "$need_mb" ] ||
      die "the disk is too full: $free_mb MB are free in $ROOT and the setup needs about $need_mb MB"
    echo "run.sh: making .venv with $("$python" -V) (once, some minutes)" >&2
    mkdir "$VENV" && echo building >"$state"
    "$python" -m venv "$VENV" >&2 || die "$python cannot make a venv, see above (Debian, Ubuntu: apt install python3-venv)"
    stamp=building
  else
    echo 'run.sh: bringing .venv up to date' >&2
    echo "upgrading $have" >"$state"
  fi
  if [ -n "$index" ]; then
    echo 'run.sh: no NVIDIA GPU here, so torch for the CPU (DEVICE=cuda asks for the other)' >&2
    "$PY" -c "import urllib.request as u; u.urlopen('$index/torch/', timeout=3)" 2>/dev/null || index=''
  fi
  extras=${wanted#core}
  # The pins hold for build backends too: by PIP_CONSTRAINT before pip 25.3, by PIP_BUILD_CONSTRAINT since.
  if ! out=$(cd "$ROOT" && PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    "$PY" -m pip install -c constraints.txt ${index:+--extra-index-url "$index"} -e ".${extras:+[${extras#,}]}" 2>&1 |
    tee >(awk '/Downloading.*[MG]B/ { sub(/-(py|cp)[0-9].*whl/, ""); print; fflush() }
               /^Installing/ { print "  Installing " NF - 3 " packages"; fflush() }' >&2)); then
    case $out in
      *"No space left"* | *"quota exceeded"*)
        die "the disk is full: make room in $ROOT and ${TMPDIR:-/tmp}, then run the same command" ;;
      *"connection broken"* | *ConnectionError* | *"timed out"* | *"name resolution"*)
        [ "$stamp" = building ] || echo "$stamp $have" >"$state" # pip fetches before it installs: nothing changed
        die "no network: the package index does not answer; run the same command when it does" ;;
    esac
    printf '%s\n' "$out" | tail -20 >&2
    die 'pip failed, see above; the same command tries again'
  fi
  echo "$fingerprint $wanted" >"$state.new" && mv "$state.new" "$state"
}

# The table says which modes and keys there are; the command line alone gives them, not the environment.
keys=$(columns 'BEGIN { printf "MODE PYTHON " } { gsub(/:[^ ]*/, "", $4); printf "%s ", $4 }')
modes=$(columns '{ print $1 }')
unset $keys
MODE=demo given=''
for word in "$@"; do
  key=${word%%=*}
  case $word in
    -h | --help) MODE='help' ;;
    *=*) case " $keys" in *" $key "*) ;; *) die "unknown key $key; did you mean $(nearest "$key" $keys)=?" 2 ;; esac
      printf -v "$key" %s "${word#*=}"
      given="$given $key" ;;
    *) die "'$word' is not KEY=VALUE; did you mean MODE=$(nearest "$word" $modes)?" 2 ;;
  esac
done

row=$(columns "\$1 == \"${MODE//[^a-z_]/?}\"")
[ -n "$row" ] || die "unknown mode '$MODE'; did you mean MODE=$(nearest "$MODE" $modes)?" 2
IFS='|' read -r _ extra command takes _ < <(printf '%s\n' "$row")

arguments=() accepts=''
for pair in $takes; do
  key=${pair%%:*} flag=${pair#*:} value=''
  accepts="$accepts $key"
  value=${!key-}
  case $flag in
    "$key") [ -n "$value" ] || die "MODE=$MODE needs $key=…" 2
      arguments+=("$value") ;;
    *\?) case $value in '' | 0) ;; 1) arguments+=("${flag%\?}") ;; *) die "$key=$value is neither 1 nor 0" 2 ;; esac ;;
    *+) [ -z "$value" ] || arguments+=("${flag%+}" ${value//,/ }) ;;
    *) [ -z "$value" ] || arguments+=("$flag" "$value") ;;
  esac
done
for key in $given; do
  case " MODE PYTHON $accepts " in *" $key "*) ;; *) die "MODE=$MODE takes no $key; it takes:${accepts:- nothing}" 2 ;; esac
done

extra=${extra// /}
[ "$extra" = none ] || set_up "$extra${EXTRAS:+,$EXTRAS}"
$command ${arguments[@]+"${arguments[@]}"}
