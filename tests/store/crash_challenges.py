"""The protocol of an answer to a challenge: recorded, written for the web server, and taken back."""

from __future__ import annotations

from crash_protocol import LAYOUT, Protocol
from modeldisk import ModelFs

from certctrl.model.challenges import Challenge, ChallengeKind
from certctrl.store.disk.atomic import read_bytes
from certctrl.store.disk.fs import closing
from certctrl.store.disk.token_files import remove_token_file, write_token_file
from certctrl.store.state.store import StateStore

TOKENS = "/srv/tokens"
TOKEN = "token-0123456789"
ANSWER = f"{TOKEN}.{'t' * 43}"
CHALLENGE = Challenge(
    kind=ChallengeKind.HTTP_01, token=TOKEN, key_authorization=ANSWER, identifier="a.test", until=9.0, directory=TOKENS
)


class Answer(Protocol):
    """Nothing is in the web server's directory that the record does not name, at any time."""

    name = "answer to a challenge"

    def prepare(self, fs: ModelFs) -> None:
        fs.put_dir("/srv")
        fs.put_dir(TOKENS)

    def act(self, fs: ModelFs) -> None:
        session = StateStore(LAYOUT, fs).session
        fs.promise(acked=False)
        session.save_challenges((CHALLENGE,))
        write_token_file(fs, TOKENS, TOKEN, ANSWER.encode())
        fs.promise(acked=True)
        session.save_cursor("2-2")  # the CA asks meanwhile
        fs.promise(acked=False)
        remove_token_file(fs, TOKENS, TOKEN, ANSWER.encode())
        session.save_challenges(())

    def always(self, fs: ModelFs) -> None:
        recorded = StateStore(LAYOUT, fs).session.load_challenges()
        with closing(fs, fs.open_dir(TOKENS)) as directory:
            names = fs.listdir(directory)
        assert recorded == (CHALLENGE,) or not names, f"nothing would ever remove {names}"
        if TOKEN in names:
            found = read_bytes(fs, f"{TOKENS}/{TOKEN}", 1000)
            assert found == ANSWER.encode(), "a partial answer"
        assert TOKEN in names or not fs.promises.get("acked"), "an answer is lost that the plane relies on"

    def recover(self, fs: ModelFs) -> None:
        super().recover(fs)
        session = StateStore(LAYOUT, fs).session
        for one in session.load_challenges():  # it has expired
            fs.promise(acked=False)
            remove_token_file(fs, one.directory, one.token, one.key_authorization.encode())
            session.save_challenges(())

    def recovered(self, fs: ModelFs) -> None:
        with closing(fs, fs.open_dir(TOKENS)) as directory:
            assert fs.listdir(directory) == []
