# vlws: every recipe is one command, so that it can be copied by whoever has no just.

set positional-arguments  # "$@" keeps an argument with a space whole

venv := justfile_directory() / ".venv"
conda := env("CONDA_PREFIX", "/nonexistent")
# the active conda environment where it holds vlws, else .venv
home := if path_exists(conda / "bin" / "vlws") == "true" { conda } else { venv }
bin := quote(home / "bin")
# idle OpenMP threads that spin take the cores of those that work
export OMP_WAIT_POLICY := env("OMP_WAIT_POLICY", "passive")
stamp := quote(home / ".vlws-installed")

[private]
default:
    @{{ just_executable() }} --justfile {{ justfile() }} --list --unsorted

# install into .venv what pyproject.toml names and constraints.txt pins (nothing to do where neither has changed)
setup:
    #!/bin/sh
    set -e
    [ {{ stamp }} -nt pyproject.toml ] && [ {{ stamp }} -nt constraints.txt ] && exit 0
    echo "Setting up" {{ quote(home) }} "(some minutes, once)" >&2
    [ -x {{ bin }}/pip ] || python3 -m venv {{ quote(venv) }}
    {{ bin }}/pip install -q --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
    touch {{ stamp }}

# open JupyterLab on the notebooks, with a panel that runs the open chapter and shows its claims
[group('explore')]
lab *ARGS: setup
    @{{ bin }}/vlws lab "$@"

# what is present on this machine, and what is slower or missing without it
[group('explore')]
doctor *ARGS: setup
    @{{ bin }}/vlws doctor "$@"

# run chapters (all; or `just run 04 -p seeds=5 --preset full`), then write reports/site/index.html
[group('run')]
[no-exit-message]
run *ARGS: setup
    @{{ bin }}/vlws run "$@" && rc=0 || rc=$?; [ $rc = 2 ] || {{ bin }}/vlws report; exit $rc

# run a chapter over a grid, then write the report: `just sweep 04 -p lr=1e-3,1e-4 -p seeds=3`
[group('run')]
[no-exit-message]
sweep *ARGS: setup
    @{{ bin }}/vlws sweep "$@" && rc=0 || rc=$?; [ $rc = 2 ] || {{ bin }}/vlws report; exit $rc

# write the offline report, reports/site/index.html, from the newest runs
[group('report')]
report *ARGS: setup
    @{{ bin }}/vlws report "$@"

# the table of claims: what the papers say, what was measured, the verdicts
[group('report')]
claims *ARGS: setup
    @{{ bin }}/vlws claims "$@"

# lint, types and every test but nbval's and those of `just archs` and `just cluster` (`just test -k knn` for some); each notebook runs once, at preset test
[group('check')]
test *ARGS: setup check
    @{{ bin }}/pytest -n 2 --dist loadfile -m "not literals and not archs and not cluster" "$@"

# execute every notebook at its own literals, compare texts and measured figures with what is committed, change a parameter
[group('check')]
nbval *ARGS: setup
    @{{ bin }}/pytest -n 2 -m literals tests/notebooks/test_nbval.py "$@"

# compile every kernel for the GPU architectures that `just test` leaves out (it compiles for sm_90)
[group('check')]
archs *ARGS: setup
    @{{ bin }}/pytest -n 2 -m archs tests/kernels "$@"

# the ways in which sweeps on Parsl and searches end that `just test` leaves out: killed drivers, lost blocks, Ctrl-C (4 minutes)
[group('check')]
cluster *ARGS: setup
    @{{ bin }}/pytest -n 2 --dist loadfile -m cluster tests/unit "$@"

# lint and types alone, seconds
[group('check')]
check: setup
    @{{ bin }}/ruff check . && {{ bin }}/ruff format --check . && {{ bin }}/mypy

# time the kernels against their peers in one run; keeps reports/results/08_kernels/bench.json
[group('check')]
bench *ARGS: setup
    @{{ bin }}/pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]' && {{ bin }}/python kernels/bench/run.py "$@"

# time retrieval and prompt methods against their peers in one run; keeps reports/results/benchmarks/methods.json
[group('check')]
bench-methods *ARGS: setup
    @{{ bin }}/pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]' && {{ bin }}/python kernels/bench/methods.py "$@"

# index 10^7 texts and compute a large matrix, killed half way and resumed (an hour, 10 GB); `--rows slots`: one slot against two, 6 minutes; keeps reports/results/benchmarks/large.json
[group('check')]
bench-large *ARGS: setup
    @{{ bin }}/python kernels/bench/large.py "$@"

# check and time every kernel on one GPU, in under 8 minutes; keeps reports/results/08_kernels/gpu.json
[group('check')]
gpu *ARGS: setup
    @{{ bin }}/python kernels/bench/gpu.py "$@"

# retrain the shipped backbones (`just backbones blip2_emoji` for one)
[group('check')]
backbones *NAMES='clip_emoji llava_emoji blip2_emoji llava_pairs blip2_facts vq_emoji morph_emoji': setup
    @for name in {{ NAMES }}; do {{ bin }}/python -m backbones.$name || exit 1; done

# train further bases for chapter 02's full run, one a seed, some 30 minutes each (`just bases 1 2`); they stay in .cache
[group('check')]
bases *SEEDS='1 2': setup
    @for seed in {{ SEEDS }}; do {{ bin }}/python -m backbones.blip2_facts --seed $seed --out .cache/bases/blip2-facts-$seed || exit 1; done
