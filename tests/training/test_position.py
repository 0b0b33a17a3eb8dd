from multicoco.training.position import Position


def test_an_accuracy_counts_when_it_is_the_best_so_far():
    at = Position()
    assert [at.note_accuracy(x) for x in (None, 0.2, 0.2, 0.1, 0.3, None)] == [False, True, False, False, True, False]
    assert at.best_accuracy == 0.3
