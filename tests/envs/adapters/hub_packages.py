"""Small packages for `verifiers`, v0 and v1, as their authors would write them. Texts: the tests install them."""

SINGLE = """
import verifiers as vf
from datasets import Dataset

def load_environment(n=20, broken=False):
    parser = vf.XMLParser(["answer"], answer_field="answer")

    def right(completion, answer, **kwargs):
        if broken:
            raise RuntimeError("the judge is out")
        return 1.0 if parser.parse_answer(completion) == answer else 0.0

    async def brief(completion):
        return 1.0 if len(completion[-1]["content"]) < 60 else 0.0

    rows = Dataset.from_list([{"question": f"Reverse w{i}", "answer": f"{i}w"} for i in range(n)])
    return vf.SingleTurnEnv(dataset=rows, system_prompt="Answer in <answer> tags.", parser=parser,
                            rubric=vf.Rubric(funcs=[right, brief], weights=[1.0, 0.2], parser=parser))
"""
TOOLS = '''
import verifiers as vf
from datasets import Dataset

def look_up(item: str) -> str:
    """The price of an item.

    Args:
        item: its name
    """
    return {"pen": "3", "ink": "9"}[item]

def load_environment():
    def right(completion, answer):
        return float(answer in completion[-1]["content"])

    rows = [{"question": f"What do {i} pens cost?", "answer": str(3 * i)} for i in range(2, 22)]
    train, held = Dataset.from_list(rows[:15]), Dataset.from_list(rows[12:])
    return vf.ToolEnv(dataset=train, eval_dataset=held, tools=[look_up], max_turns=4, rubric=vf.Rubric(funcs=[right]))
'''
TURNS = """
import verifiers as vf
from datasets import Dataset

class Guess(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["low"] = 0
        return state

    async def env_response(self, messages, state, **kwargs):
        said = messages[-1]["content"].strip()
        if said == "crash":
            raise vf.SandboxError("the box is gone") if hasattr(vf, "SandboxError") else vf.Error("the box is gone")
        if said == state["answer"]:
            state["found"] = True
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if int(said) < int(state["answer"]) else "lower"}]

def load_environment():
    def found(state):
        return 1.0 if state.get("found") else 0.0

    rows = Dataset.from_list([{"question": "Guess.", "answer": str(i)} for i in range(12)])
    return Guess(dataset=rows, max_turns=5, rubric=vf.Rubric(funcs=[found]))
"""
GROUPS = """
import verifiers as vf
from datasets import Dataset

def load_environment():
    def best(completions, **kwargs) -> list[float]:
        return [1.0 for _ in completions]
    rows = Dataset.from_list([{"question": "q", "answer": "a"}])
    return vf.SingleTurnEnv(dataset=rows, rubric=vf.Rubric(funcs=[best]))
"""
TASKSET = """
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: int

class SumTask(vf.Task[SumData]):
    @vf.reward(weight=1.0)
    async def right(self, trace) -> float:
        if self.data.answer == 13 and trace.last_reply == "crash":
            raise RuntimeError("unlucky")
        return float(trace.last_reply.strip() == str(self.data.answer))

    @vf.metric
    async def length(self, trace) -> float:
        return float(len(trace.last_reply))

class SumTaskset(vf.Taskset[SumTask, vf.TasksetConfig]):
    def load(self):
        for i in range(20):
            data = SumData(prompt=f"{i} + 3 =", system_prompt="Only the number.", answer=i + 3)
            yield SumTask(data, self.config.task)

__all__ = ["SumTaskset"]
"""
RUNTIME = TASKSET.replace("async def right(self, trace)", "async def right(self, trace, runtime)")
SHOP = '''
import os
import verifiers.v1 as vf

class Basket(vf.State):
    prices: dict[str, int] = {}
    taken: list[str] = []

class ShopData(vf.TaskData):
    answer: int
    item: str
    price: int

class Shop(vf.Toolset[vf.ToolsetConfig, Basket]):
    def __init__(self, config):
        super().__init__(config)
        self.calls = 0

    async def setup_task(self, task):
        self.item = task.item

    @vf.tool
    def price(self, item: str) -> str:
        """What an item costs."""
        self.calls += 1
        return f"{self.state.prices[item]}, call {self.calls} about {self.item}"

    @vf.tool
    def take(self, item: str, count: int) -> str:
        """Put something into the basket."""
        self.state.taken = [*self.state.taken, *[item] * count]
        return ", ".join(self.state.taken)

    @vf.tool
    def die(self) -> str:
        """Ends the server."""
        os._exit(1)

class ShopTask(vf.Task[ShopData, Basket]):
    @classmethod
    def toolsets(cls, config):
        return [Shop(vf.ToolsetConfig())]

    async def setup(self, trace, runtime):
        trace.state.prices = {self.data.item: self.data.price}
        self.began = trace.id

    async def finalize(self, trace, runtime):
        trace.info["basket"] = len(trace.state.taken)

    @vf.stop
    async def enough(self, trace: vf.Trace) -> bool:
        return len(trace.state.taken) > 5

    @vf.reward
    async def right(self, trace) -> float:
        if self.began != trace.id:
            raise RuntimeError("somebody else's attempt")
        return float(trace.last_reply.strip() == str(self.data.answer))

    @vf.metric
    async def basket(self, trace) -> float:
        return float(trace.info["basket"])

class ShopTaskset(vf.Taskset[ShopTask, vf.TasksetConfig]):
    def load(self):
        for i in range(12):
            asked = f"What does item{i} cost, twice?"
            data = ShopData(prompt=asked, item=f"item{i}", price=i + 400, answer=2 * i + 800)
            yield ShopTask(data, self.config.task)

__all__ = ["ShopTaskset"]

if __name__ == "__main__":
    Shop.run()
'''
SHARED = '''
import os
import verifiers.v1 as vf

class Seen(vf.State):
    words: list[str] = []

class Words(vf.Toolset[vf.SharedToolsetConfig, Seen]):
    TOOL_PREFIX = None

    async def setup(self):
        self.calls = 0

    @vf.tool
    def say(self, word: str) -> str:
        """Says a word."""
        self.calls += 1
        self.state.words = [*self.state.words, word]
        return f"{os.getpid()} {self.calls} {' '.join(self.state.words)}"

class WordTask(vf.Task[vf.TaskData, Seen]):
    @vf.reward
    async def several(self, trace) -> float:
        return float(len(trace.state.words) == 2)

class WordTaskset(vf.Taskset[WordTask, vf.TasksetConfig]):
    @classmethod
    def toolsets(cls, config):
        return [Words(vf.SharedToolsetConfig())]

    def load(self):
        for i in range(12):
            yield WordTask(vf.TaskData(prompt=f"Say two words about {i}."), self.config.task)

__all__ = ["WordTaskset"]

if __name__ == "__main__":
    Words.run()
'''
GAME = """
import verifiers.v1 as vf

class GuessData(vf.TaskData):
    answer: int

class GuessTask(vf.Task[GuessData]):
    @vf.reward(weight=0.5)
    async def brief(self, trace) -> float:
        return float(trace.num_turns < 4)

class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class Guess(vf.Env[GuessConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and int(segment.last_reply) != task.data.answer:
                low = int(segment.last_reply) < task.data.answer
                segment = await interaction.turn("higher" if low else "lower")
        interaction.trace.record_reward("found", float(int(segment.last_reply) == task.data.answer))

class GuessTaskset(vf.Taskset[GuessTask, vf.TasksetConfig]):
    def load(self):
        for i in range(12):
            yield GuessTask(GuessData(prompt=f"Guess ({i}).", system_prompt="A number.", answer=i), self.config.task)

__all__ = ["GuessTaskset", "Guess"]
"""
BOXED = {
    "a container": SHOP.replace(
        "ShopTask(vf.Task[ShopData, Basket]):", "ShopTask(vf.Task[ShopData, Basket]):\n    NEEDS_CONTAINER = True"
    ),
    "a container (docker) for its tools Shop": SHOP.replace(
        "vf.ToolsetConfig()", 'vf.ToolsetConfig(runtime={"type": "docker"})'
    ),
    "the agent's container for its tools Shop": SHOP.replace("vf.ToolsetConfig()", "vf.ToolsetConfig(colocated=True)"),
    "a runtime to set up": SHOP.replace("self.began = trace.id", 'await runtime.write("a", b"b")'),
    "a runtime to finish in": SHOP.replace(
        'trace.info["basket"] =', 'trace.info["basket"] = (await runtime.read("a")) and'
    ),
    "a user who speaks first": SHOP.replace("prompt=asked, ", ""),
    "a harness of its own, Bash": SHOP.replace(
        '__all__ = ["ShopTaskset"]',
        "from verifiers.v1.harnesses.null import NullHarness\n\nclass Bash(NullHarness): ...\n\n"
        '__all__ = ["ShopTaskset", "Bash"]',
    ),
}
