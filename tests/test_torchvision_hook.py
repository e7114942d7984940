"""The import hook: torchvision loads beside a CPU build of torch, and what is missing still fails honestly."""

import subprocess
import sys

import pytest

from unigrpo import torchvision_hook


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def printed():
    """Return what one fresh process prints: after importing torchvision, a resize, a call of nms, the finders left."""
    done = run(
        "import sys, unigrpo, torch, torchvision\n"
        "from torchvision.transforms import v2\n"
        "from unigrpo import torchvision_hook\n"
        "print(tuple(v2.Resize(4)(torch.zeros(3, 8, 8)).shape))\n"
        "boxes, scores = torch.tensor([[0., 0., 1., 1.], [0., 0., 1., 1.]]), torch.tensor([1., 0.5])\n"
        "try:\n"
        "    print(torchvision.ops.nms(boxes, scores, 0.5).tolist())\n"
        "except (NotImplementedError, RuntimeError) as error:\n"
        "    print('refused', 'nms' in str(error) or 'C++ ops' in str(error))\n"
        "torchvision_hook.install()\n"
        "print(sum(type(finder).__name__ == '_TorchvisionFinder' for finder in sys.meta_path))"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_torchvision_and_its_transforms_import_after_unigrpo(printed):
    assert printed[0] == "(3, 4, 4)"


def test_nms_works_where_compiled_and_else_fails_when_called(printed):
    assert printed[1] in ("[0]", "refused True")


def test_hook_leaves_the_import_path_after_its_work(printed):
    assert printed[2] == "0"


def test_importing_the_package_imports_nothing_heavy():
    done = run("import sys, unigrpo; print([n for n in ('torch', 'torchvision', 'ray', 'PIL') if n in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_hook_is_installed_once():
    done = run(
        "import sys, unigrpo\n"
        "from unigrpo import torchvision_hook\n"
        "torchvision_hook.install()\n"
        "print(sum(type(finder).__name__ == '_TorchvisionFinder' for finder in sys.meta_path))"
    )
    assert done.stdout.strip() == "1"


def test_missing_torchvision_stays_an_import_error():
    done = run(
        "import sys\n"
        "sys.path = [entry for entry in sys.path if 'site-packages' not in entry]\n"
        f"sys.path.insert(0, {str(torchvision_hook.__file__).rpartition('/')[0]!r})\n"
        "import torchvision_hook\n"
        "torchvision_hook.install()\n"
        "try:\n"
        "    import torchvision\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error.name)"
    )
    assert done.stdout.strip() == "torchvision", done.stderr


def test_schemas_are_those_of_torchvision():
    assert [schema.partition("(")[0] for schema in torchvision_hook.SCHEMAS] == ["nms", "qnms"]
