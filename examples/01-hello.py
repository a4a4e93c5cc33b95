"""Ten lines that survive kill -9: the file hello.db holds the run; the same command again goes on with it."""

from treadle import connect, step, workflow


@step
def greet(name: str) -> str:
    return f"Hello, {name}!"


@step
def shout(text: str) -> str:
    return text.upper()


@workflow
def hello(name: str) -> str:
    return shout.bind(greet.bind(name))


if __name__ == "__main__":
    with connect("sqlite:///hello.db") as app:
        print(app.start(hello, "world", id="hello-1").result())
