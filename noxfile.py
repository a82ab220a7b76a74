"""Everything the project does to itself. `nox` runs the suite, lint, typing and docs.

Sessions test the wheel, built once per run of nox, and never the checkout: they run in a copy of
the tree that lacks the package.
"""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

WORK = ROOT / ".nox" / "made"
WHEELS = WORK / "wheels"
COVERAGE = WORK / "coverage"
RESULTS = WORK / "results"  # JUnit files, and their sum for .ci/run
TREES = WORK / "trees"
DOCS = WORK / "docs"

# What a test may read of the tree: everything that is kept but the package.
CARRIED = ["tests", "docs", "examples", ".ci", "pyproject.toml", "noxfile.py"]
CARRIED += ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"]

SUPPORTED = ["3.11", "3.12", "3.13"]
BENCHMARKED = "3.13"
TORTURE_ROUNDS = 3


# Interpreters. A pyenv shim is on PATH and may still not run; nox would try to download what it
# hides, then skip it in silence. So: run each candidate, and put those that answer first on PATH.


def find_interpreter(version: str) -> str | None:
    """Return the path of a CPython that runs, or None."""
    name = f"python{version}"
    folders = [Path(sys.base_prefix, "bin"), *map(Path, os.get_exec_path())]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders += sorted(pyenv.glob(f"versions/{version}.*/bin"), reverse=True)
    for candidate in (folder / name for folder in folders):
        if candidate.is_file() and answers(candidate, version):
            return str(candidate)
    return None


def answers(candidate: Path, version: str) -> bool:
    """Tell whether an executable runs and is the CPython its name says."""
    ask = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
    return done.stdout.split() == ["cpython", version]


FOUND = {version: find_interpreter(version) for version in SUPPORTED}
PRESENT = [version for version, path in FOUND.items() if path]
ABSENT = [version for version, path in FOUND.items() if not path]
if not PRESENT:
    raise SystemExit(f"no interpreter found: callbackkit needs one of CPython {SUPPORTED}")

FOLDERS = [str(Path(path).parent) for path in FOUND.values() if path]
os.environ["PATH"] = os.pathsep.join([*FOLDERS, os.environ.get("PATH", "")])
os.environ["UV_PYTHON_DOWNLOADS"] = "never"
os.environ["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.sessions = ["lint", "typing", "docs", "tests"]


# What sessions share.


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PYPROJECT, name))


def install_wheel(session: nox.Session, *groups: str) -> None:
    """Install the wheel of this run together with dependency groups."""
    [wheel] = WHEELS.glob("*.whl")
    requirements = [requirement for name in groups for requirement in group(name)]
    session.install(str(wheel), *requirements)


def copy_tree(session: nox.Session) -> Path:
    """Copy the tree without the package, so that only the installed one can be imported."""
    tree = TREES / session.name
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a test run; Hypothesis remembers its findings in the checkout."""
    return {"HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"), "PYTHONPATH": "", **more}


# Sessions.


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel, once for all sessions that need it."""
    for version in ABSENT:
        session.warn(f"CPython {version} is absent: nothing runs on it here")
    shutil.rmtree(WORK, ignore_errors=True)
    session.install(*PYPROJECT["build-system"]["requires"])
    session.run("hatchling", "build", "-t", "wheel", "-d", str(WHEELS), silent=True)


@nox.session(python=PRESENT, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run the suite on the wheel; with arguments, those for pytest and no coverage."""
    install_wheel(session, "tests")
    results = f"--junitxml={RESULTS / f'{session.python}.xml'}"
    with session.chdir(copy_tree(session)):
        if session.posargs:
            session.run("pytest", *session.posargs, env=environment())
        else:
            session.notify("report")
            data = environment(COVERAGE_FILE=str(COVERAGE / "data"))
            # One process for each processor; a third of the time on two of them.
            session.run("coverage", "run", "-m", "pytest", "-n", "auto", results, env=data)


@nox.session
def report(session: nox.Session) -> None:
    """Join the coverage of all interpreters, count their tests; notified by `tests`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    counted = count_tests()
    (RESULTS / "sum.txt").write_text(f"{counted}\n", "utf-8")
    session.log(f"on CPython {', '.join(PRESENT)}; absent: {', '.join(ABSENT) or 'none'}")
    session.log(counted)
    session.install(*(found for found in group("tests") if found.startswith("coverage")))
    data = {"COVERAGE_FILE": str(COVERAGE / "data")}
    session.run("coverage", "combine", "--quiet", str(COVERAGE), env=data)
    session.run("coverage", "report", env=data)


def count_tests() -> str:
    """Return the closing line of all suites together."""
    files = RESULTS.glob("*.xml")
    suites = [suite for path in files for suite in ET.parse(path).iter("testsuite")]
    total, failures, errors, skipped = (
        sum(int(suite.get(kind, "0")) for suite in suites)
        for kind in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return f"tests: {total - failed - skipped} passed, {failed} failed, {skipped} skipped"


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules and format."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session(requires=["build"])
def typing(session: nox.Session) -> None:
    """Check the package, its public types, and right and wrong programs that use it."""
    install_wheel(session, "typing")
    session.run("mypy")
    session.run("pyright")
    with session.chdir(copy_tree(session)):
        session.run("pyright", "--verifytypes", "callbackkit", "--ignoreexternal")
        session.run("pytest", "-m", "typing", "tests/typing", env=environment())


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error. Its code blocks run in the suite."""
    install_wheel(session, "docs")
    with session.chdir(copy_tree(session)):
        session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", str(DOCS))
    session.log(f"open {DOCS / 'index.html'}")


@nox.session(python=PRESENT[-1], requires=["build"])
def demo(session: nox.Session) -> None:
    """Run the demo from the wheel."""
    install_wheel(session)
    with session.chdir(WORK):
        session.run("python", "-m", "callbackkit", "demo", *session.posargs)


@nox.session(python=BENCHMARKED if BENCHMARKED in PRESENT else PRESENT[-1], requires=["build"])
def bench(session: nox.Session) -> None:
    """Measure us beside our peers; the figures of one version bind."""
    if BENCHMARKED not in PRESENT:
        session.skip(f"CPython {BENCHMARKED} is absent, and its figures are the ones that bind")
    install_wheel(session, "bench")
    with session.chdir(copy_tree(session)):
        session.run("python", "-m", "tests.benchmarks", *session.posargs, env=environment())


@nox.session(python=PRESENT[-1], requires=["build"])
def torture(session: nox.Session) -> None:
    """Run the heavy tests and every property with many more examples, in several orders."""
    install_wheel(session, "tests")
    heavy = environment(HYPOTHESIS_PROFILE="torture")
    chosen = ["-m", "torture or hypothesis", "--timeout=1800", *session.posargs]
    with session.chdir(copy_tree(session)):
        for _ in range(TORTURE_ROUNDS):
            session.run("pytest", *chosen, env=heavy)
