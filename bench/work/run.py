"""The work whose speed is compared, in a sandbox and on the host: `run.py NAME` does it once and
prints its seconds; `run.py prepare` makes what it works on. All of it lies beside this file."""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "b", "GIT_AUTHOR_EMAIL": "b@b", "GIT_COMMITTER_NAME": "b",
    "GIT_COMMITTER_EMAIL": "b@b", "GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000",
}


def run(*cmd, **env):
    subprocess.run(cmd, check=True, env={**ENV, **env}, stdout=subprocess.DEVNULL, close_fds=False)


def timed(work):
    """Seconds of work(folder), the folder made before and removed after."""
    with tempfile.TemporaryDirectory(dir=HERE) as folder:
        began = time.perf_counter()
        work(folder)
        return time.perf_counter() - began


def loop(_):
    total = 0
    for i in range(5_000_000):
        total = (total * 31 + i) & 0xFFFFFFFF
    return total


def git(folder):
    # Without --no-local a clone of a folder only links its files.
    run("git", "clone", "--quiet", "--no-local", HERE + "/repository", folder + "/clone")


def pip(folder):
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check",
        "--no-cache-dir", "--root-user-action=ignore", "--target", folder + "/site", HERE + "/bench_wheel-1.0-py3-none-any.whl",
        PYTHONPATH=HERE + "/pip")


def cc(folder):
    run("gcc", "-O2", "-o", folder + "/program", HERE + "/program.c")
    run(folder + "/program")


def files():
    """Seconds to make, read and remove 10,000 files of 1 KB in 100 folders."""
    folder, content = tempfile.mkdtemp(dir=HERE), b"x" * 1024
    names = [f"{folder}/{d}/{n}" for d in range(100) for n in range(100)]

    def make():
        for d in range(100):
            os.mkdir(f"{folder}/{d}")
        for name in names:
            with open(name, "wb", buffering=0) as f:
                f.write(content)

    def read():
        for name in names:
            with open(name, "rb", buffering=0) as f:
                assert f.read() == content

    def remove():
        shutil.rmtree(folder)

    took = []
    for step in make, read, remove:
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    return took


def prepare():
    r = random.Random(1)
    words = ["".join(r.choices("abcdefghijklmnop", k=r.randint(2, 10))) for _ in range(5000)]
    repository = HERE + "/repository"
    os.mkdir(repository)
    run("git", "init", "--quiet", repository)
    for commit in range(20):
        os.mkdir(f"{repository}/{commit}")
        for n in range(100):
            with open(f"{repository}/{commit}/{n}.txt", "w") as f:
                f.write("\n".join(" ".join(r.choices(words, k=10)) for _ in range(40)))
        run("git", "-C", repository, "add", ".")
        run("git", "-C", repository, "commit", "--quiet", "-m", f"commit {commit}")
    wheel("bench_wheel", r, words)
    with open(HERE + "/program.c", "w") as f:
        f.write("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <math.h>\n")
        for n in range(100):
            f.write(f"static unsigned f{n}(unsigned x) {{ for (int i = 0; i < {n + 3}; i++) x = x * {r.randint(3, 999)}u + (x >> {n % 13 + 1}); return x; }}\n")
        f.write("int main(void) { unsigned x = 1;\n" + "".join(f"x = f{n}(x);\n" for n in range(100)) + 'printf("%u\\n", x); return 0; }\n')


def wheel(name, r, words):
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(f"{HERE}/{name}-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as z:
        modules = [f"{name}/__init__.py"] + [f"{name}/m{n}.py" for n in range(300)]
        for module in modules:
            z.writestr(module, "".join(f"def {w}_{i}(a, b):\n    return a + b * {i}\n" for i, w in enumerate(r.choices(words, k=60))))
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "".join(f"{f},,\n" for f in modules + [f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"]))


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "prepare":
        prepare()
    elif name == "files":
        print(*files())
    else:
        print(timed({"loop": loop, "git": git, "pip": pip, "gcc": cc}[name]))
