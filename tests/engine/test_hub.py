"""Ids of the hub, and the folder that stands in for it."""

from __future__ import annotations

import pytest

from rematch.errors import RematchError
from rematch.hub import Hub


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "models/state-spaces/mamba-130m-hf").mkdir(parents=True)
    (tmp_path / "datasets/EleutherAI/lambada_openai").mkdir(parents=True)
    return tmp_path


def test_without_a_mirror_an_id_stays_an_id():
    assert Hub().model_path("state-spaces/mamba-130m-hf") == "state-spaces/mamba-130m-hf"
    assert Hub().dataset_path("EleutherAI/lambada_openai") == "EleutherAI/lambada_openai"


def test_a_mirror_comes_before_the_hub(mirror):
    hub = Hub(mirror)
    assert hub.model_path("state-spaces/mamba-130m-hf") == str(mirror / "models/state-spaces/mamba-130m-hf")
    assert hub.dataset_path("EleutherAI/lambada_openai") == str(mirror / "datasets/EleutherAI/lambada_openai")


@pytest.mark.parametrize(("ask", "kind"), [(Hub.model_path, "model"), (Hub.dataset_path, "dataset")])
def test_what_a_mirror_lacks_is_an_error_that_says_how_to_get_it(mirror, ask, kind):
    with pytest.raises(RematchError) as caught:
        ask(Hub(mirror), "org/absent")
    assert str(caught.value) == (
        f"hub_mirror: no '{kind}s/org/absent' in {mirror}; fill it with: rematch mirror {mirror} --{kind} org/absent"
    )


def test_models_and_datasets_are_not_mixed_up(mirror):
    with pytest.raises(RematchError):
        Hub(mirror).dataset_path("state-spaces/mamba-130m-hf")
