"""GPUs are shared out over a worker's slots."""

from contextlib import ExitStack

from somatize_worker.worker.lending import GpuLender, environment


def test_one_slot_sees_every_gpu() -> None:
    with GpuLender([0, 2, 3], slots=1).lend() as gpus:
        assert gpus == [0, 2, 3]


def test_runs_get_different_gpus_while_there_are_some() -> None:
    lender = GpuLender([0, 1, 2, 3], slots=2)
    with lender.lend() as first, lender.lend() as second:
        assert first == [0, 1]
        assert second == [2, 3]
    with lender.lend() as again:
        assert again == [0, 1]


def test_more_slots_than_gpus_share_evenly() -> None:
    lender = GpuLender([0, 1], slots=4)
    with ExitStack() as stack:
        lent = [stack.enter_context(lender.lend()) for _ in range(4)]
    assert lent == [[0], [1], [0], [1]]


def test_a_worker_without_gpus_lends_none_and_hides_nothing() -> None:
    with GpuLender([], slots=2).lend() as gpus:
        assert gpus is None
        assert environment(gpus) == {}


def test_numbers_are_in_nvmls_order() -> None:
    assert environment([1, 3]) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,3"}
