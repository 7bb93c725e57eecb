"""What a person reads while a student is trained, by a clock of the test's own."""

from nisynth.consumers.training_log import TrainingLog


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_per_epoch_and_one_every_ten_seconds() -> None:
    """Two epochs of 5 steps of 100 images, 4 s a step; the first step, which compiles, sets no pace."""
    clock, said = Clock(), []
    told = TrainingLog(said.append, num_epochs=2, batch_size=100, clock=clock)
    clock.now_s = 60.0
    for step in range(1, 11):
        told.on_step(step, 10)
        clock.now_s += 4.0
        if step % 5 == 0:
            record = {"epoch": step // 5, "loss": 1.25, "train_accuracy": 0.5}
            told.on_epoch(record if step == 5 else {**record, "test_accuracy": 0.4321})
    assert said == [
        "step 2 of 10: 25.0 images/s, ETA 32s",
        "epoch 1 of 2: loss 1.25, train 50.0%, 25.0 images/s, ETA 20s",
        "step 9 of 10: 25.0 images/s, ETA 4.0s",
        "epoch 2 of 2: loss 1.25, train 50.0%, test 43.21%, 25.0 images/s, ETA 0.0s",
    ]


def test_a_resumed_training_says_so_and_counts_only_what_it_did() -> None:
    clock, said = Clock(), []
    told = TrainingLog(said.append, num_epochs=1, batch_size=10, clock=clock)
    told.on_step(91, 100)
    for step in range(92, 97):
        clock.now_s += 2.5
        told.on_step(step, 100)
    assert said == [
        "continuing from the checkpoint at step 90 of 100",
        "step 95 of 100: 4.00 images/s, ETA 12s",
    ]
