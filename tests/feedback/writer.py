"""A process whose threads write messages into one conversation and say the id of each once it is committed.

python -m tests.feedback.writer URL PERSON CONVERSATION THREADS COUNT
"""

import sys
from threading import Thread
from uuid import UUID, uuid4

from chatwright.feedback import conversations
from chatwright.feedback.conversations import Content
from chatwright.feedback.database import Database


def main(url: str, person: str, conversation: str, threads: str, count: str) -> None:
    database = Database(url)

    def write() -> None:
        for _ in range(int(count)):
            key = uuid4()
            with database.writing(UUID(person)) as session:
                words = [Content("text", f"written by {key}")]
                conversations.add(session, UUID(conversation), key, None, "user", words)
            sys.stdout.write(f"{key}\n")
            sys.stdout.flush()

    workers = [Thread(target=write) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
