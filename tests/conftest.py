"""Fixtures that more than one suite needs."""

from __future__ import annotations

import importlib.resources
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import uvicorn
from hypothesis import HealthCheck, settings
from starlette.types import ASGIApp

from lasro.redis_store.connection import connect
from lasro.redis_store.embedded import EmbeddedRedis

Serve = Callable[[ASGIApp], str]

# On a busy machine an example may take long without anything being wrong.
settings.register_profile("lasro", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lasro")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the parts of docs/ that tests check")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on a unix socket, shared by the whole session: use a run name or reward name of your own."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with EmbeddedRedis(folder) as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A connection to an emptied server."""
    with connect(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def serve(redis_url: str) -> Iterator[Serve]:
    """Starts an app under real uvicorn, in a thread, on a free loopback port, and returns its URL.

    It asks for Redis so that apps which use it are stopped first.
    """
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: ASGIApp) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended while starting"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, _ in reversed(servers):
        server.should_exit = True
    for _, thread in servers:
        thread.join(30)
        assert not thread.is_alive(), "a server did not stop"


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL-class consistency model far smaller than the bundled one: latents 4 x 8 x 8, images 16 x 16.

    Only its tokenizers are the bundled ones.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    diffusers: Any = importlib.import_module("diffusers")  # its annotations refuse tuples of more than one
    bundled = Path(str(importlib.resources.files("lasro"))) / "assets" / "tiny-sdxl-lcm"
    tokenizers = [CLIPTokenizer.from_pretrained(bundled / name) for name in ("tokenizer", "tokenizer_2")]
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizers[0]), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=tokenizers[0].model_max_length, bos_token_id=0,
        eos_token_id=tokenizers[0].eos_token_id, pad_token_id=tokenizers[0].pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = diffusers.StableDiffusionXLPipeline(
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, scaling_factor=0.5,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            ),
            text_encoder=CLIPTextModel(text_config),
            text_encoder_2=CLIPTextModelWithProjection(text_config),
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=diffusers.UNet2DConditionModel(
                sample_size=8, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
                attention_head_dim=(1, 2), use_linear_projection=True, time_cond_proj_dim=16,
                addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8,
            ),
            scheduler=diffusers.LCMScheduler.from_pretrained(bundled, subfolder="scheduler"),
            add_watermarker=False,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    pipeline.save_pretrained(folder)
    return folder
