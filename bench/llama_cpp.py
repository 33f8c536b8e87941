"""llama.cpp's server (PyPI `xllamacpp`) on a GGUF file, for the scripts beside this one."""

import json
import subprocess
import sys
import tempfile
import urllib.request


class Server:
    """A server in a process of its own, f32 keys and values, no flash attention: what is nearest to exact."""

    def __init__(self, python, gguf, context, threads=2):
        command = [python, __file__, str(gguf), str(context), str(threads)]
        # Its log goes to a file: a pipe that nobody reads would be full after some hundred requests.
        self.log = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.address = None
        for line in self.process.stdout:
            if line.startswith("LISTENING "):
                self.address = line.split()[1]
                return
        self.process.wait()
        self.log.seek(0)
        sys.exit(f"llama.cpp did not load {gguf}:\n{self.log.read()[-3000:]}")

    def ask(self, path, **body):
        request = urllib.request.Request(
            f"{self.address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            sys.exit(f"llama.cpp answered {error.code} to {path}: {error.read().decode()[:500]}")

    def ids(self, text, special=False):
        """The ids of a text, without <bos>; `special`: spelled-out special tokens become ids."""
        return self.ask("tokenize", content=text, add_special=False, parse_special=special)["tokens"]

    def complete(self, ids, new, top=0):
        """Greedy continuation of ids; `top` most probable ids of each place with their log-probabilities."""
        return self.ask(
            "completion", prompt=ids, n_predict=new, temperature=0, samplers=["temperature"], n_probs=top, cache_prompt=False,
            return_tokens=True,
        )  # fmt: skip

    def render(self, messages):
        """The text of a conversation's prompt, without the `<bos>` that the server puts before each prompt."""
        return self.ask("apply-template", messages=messages)["prompt"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(gguf, context, threads):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.use_jinja = True
    params.port = 0
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print("LISTENING", server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
