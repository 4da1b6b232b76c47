"""Even shares of a turn."""

from dmnotid.hook.turn import Turn


def test_shares_are_even_and_never_nothing() -> None:
    turn = Turn(512, least=4)
    assert turn.share == 512
    shares = []
    for _ in range(200):
        turn.open()
        shares.append(turn.share)
    assert shares[:4] == [512, 256, 170, 128]
    assert all(share * count <= 512 for count, share in enumerate(shares[:128], 1))
    assert shares[128:] == [4] * 72
    for _ in range(200):
        turn.close()
    assert turn.share == 512
