"""From a forwarded request to its answer: asks the replica that the core chose, passes on what comes, settles.

Nothing is sent to the client before the replica's first byte, so until then a request that fails can go elsewhere, and
a refused stream (200, then an error event) still becomes an error with a status. After it, a stream that breaks off is
ended with a ``finish_reason`` and an error event.
"""

from __future__ import annotations

import asyncio
import logging

from policies.api import Failed as FailedEvent
from policies.api import Forward, Reason, Refuse
from sim.live.gateway.core_driver import AsyncGateway
from sim.live.gateway.descriptors import exhausted
from sim.live.gateway.error_responses import ApiError, ended, refusal
from sim.live.gateway.headers import BadAnswerError, bearer_header, check_answer, to_upstream
from sim.live.gateway.in_flight import AbortReason, Exchange
from sim.live.gateway.replies import Outgoing, Replies, UpstreamFailedError
from sim.live.gateway.settings import Settings
from sim.live.gateway.settling import TOO_LONG, Send, Settling
from sim.live.gateway.sse import BrokenStreamError, usage_of
from sim.live.gateway.stored import Owners, Stored, StoredResponses
from sim.live.observability.observer import Ended
from sim.live.replicas.http_client import (
    BadHeadError,
    ConnectError,
    ConnectTimeoutError,
    Response,
    UpstreamError,
)
from sim.live.replicas.upstreams import Replica, Upstreams, json_object

LOG = logging.getLogger("tokenpools.relay")

_POLL_S = 1.0
_MOST_POLLED_BYTES = 2**24
_ASK_S = 10.0
_RUNNING = ("queued", "in_progress")
_BAD_ANSWER = ApiError(502, "bad_upstream_answer", "The model server's answer is no HTTP.", kind="server_error",
                       retry_after_s=1.0)
_EXHAUSTED = ApiError(503, "overloaded", "The gateway has no descriptors left.", kind="server_error", retry_after_s=1.0)


class Relay:
    """Serves admitted requests.

    Attributes
    ----------
    stored : whose the responses are that replicas keep.
    settling : ends requests.
    """

    def __init__(
        self, gateway: AsyncGateway, upstreams: Upstreams, settings: Settings, owners: Owners | None = None
    ) -> None:
        self._gateway = gateway
        self._upstreams = upstreams
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._own_header = settings.class_header.lower().encode()
        self.stored = StoredResponses(owners)
        self.settling = Settling(gateway, settings)
        self._replies = Replies(gateway, settings, self.settling, self.stored)

    async def serve(self, exchange: Exchange, outgoing: Outgoing, send: Send) -> None:
        """Wait for the core's verdict and do what it says, to the end of the answer.

        Raises
        ------
        ApiError : the answer is an error, and nothing was sent yet.
        CancelledError : the request was cut; `Settling.settle_cut` is next.
        """
        failure: UpstreamFailedError | None = None
        exchange.answers = max(1, outgoing.answers)
        while True:
            exchange.wait(self._loop.time() + self._settings.timeouts.held_s, AbortReason.HELD_LONG)
            verdict = await exchange.decided()
            if isinstance(verdict, Refuse):
                exchange.outcome, exchange.reason = Ended.REFUSED, verdict.reason
                exchange.needed, exchange.available = verdict.needed, verdict.available
                exchange.arrived = False
                raise refusal(verdict)
            if isinstance(verdict, FailedEvent):
                exchange.arrived = False
                await self._give_up(exchange, failure, send)
                return
            exchange.tries += 1
            exchange.replica_id = verdict.replica_id
            try:
                await self._ask(exchange, verdict, outgoing, send)
            except UpstreamFailedError as error:
                if exchange.cut_by is not None:  # the loss of the replica has cost it its place
                    await asyncio.sleep(0)  # where it hears of that
                failure = error
                final = exchange.started or not error.elsewhere or outgoing.replica_id is not None
                if exchange.arrived:
                    self.settling.fail(exchange, final=final)
                else:  # it was settled before
                    final = True
                if exchange.started:
                    return
                if final:
                    await self._give_up(exchange, failure, send)
                    return
            else:
                return

    async def _give_up(self, exchange: Exchange, failure: UpstreamFailedError | None, send: Send) -> None:
        """Answer with what the last replica said."""
        answer = ended(Reason.REPLICA_FAILED) if failure is None else failure.answer
        if isinstance(answer, ApiError):
            raise answer
        exchange.error = "upstream_error"
        await self.settling.start(exchange, answer.status, answer.headers, send)
        await send({"type": "http.response.body", "body": answer.body})

    async def _ask(self, exchange: Exchange, forward: Forward, outgoing: Outgoing, send: Send) -> None:
        """Send the request to a replica and pass its answer on."""
        chosen = forward.replica_id if outgoing.replica_id is None else outgoing.replica_id
        replica = self._upstreams.replicas.get(chosen)
        if replica is None:
            raise UpstreamFailedError(ended(Reason.REPLICA_FAILED))
        timeouts = self._settings.timeouts
        # An answer in one piece begins when it is complete, so that its first byte says nothing of its replica.
        longest_s = timeouts.first_byte_s if exchange.stream else timeouts.whole_s
        exchange.wait(self._loop.time() + longest_s, AbortReason.UPSTREAM_SILENT)
        response: Response | None = None
        background: str | None = None
        try:
            response = await self._request(exchange, forward, outgoing, replica)
            if not 200 <= response.status < 600:
                raise ValueError(f"status {response.status} is none")
            check_answer(response.raw_headers)
            if response.status >= 400:
                await self._replies.error(exchange, response, send)
            else:
                outgoing.drop_body()
                if response.content_type == "text/event-stream":
                    await self._replies.events(exchange, forward, response, outgoing, send)
                else:
                    background = await self._replies.whole(exchange, forward, response, outgoing, send)
        except (BadAnswerError, BadHeadError) as error:
            LOG.warning("%s: upstream %s: %s", exchange.request_id, replica.address.name, error)
            await self._broken_off(exchange, _BAD_ANSWER, send, error)
        except (UpstreamError, OSError, ValueError, BrokenStreamError) as error:
            await self._lost(exchange, replica, error, send)
        except asyncio.CancelledError:
            if exchange.cut_by is not AbortReason.UPSTREAM_SILENT:
                raise
            exchange.uncut()
            LOG.warning("%s: upstream %s says nothing", exchange.request_id, replica.address.name)
            # What it still computes would be computed twice elsewhere.
            await self._broken_off(
                exchange, TOO_LONG[AbortReason.UPSTREAM_SILENT], send, None, elsewhere=exchange.stream
            )
        finally:
            if response is not None:
                response.close()
        if background is not None:
            await self._until_done(exchange, replica, background)

    async def _request(
        self, exchange: Exchange, forward: Forward, outgoing: Outgoing, replica: Replica
    ) -> Response:
        headers = to_upstream(
            outgoing.headers, api_key=replica.address.api_key, request_id=exchange.request_id, own=self._own_header,
            read=True,
        )
        wanted = self._settings.metering.continuous_usage
        continuous = wanted == "always" or (wanted == "auto" and replica.tells_usage)
        body = outgoing.body_for(max(1, forward.max_output_tokens // outgoing.answers), exchange.priority, continuous)
        exchange.sent = True
        exchange.sent_s = self._loop.time()
        return await self._upstreams.client.request(
            outgoing.method, replica.url(outgoing.raw_path), headers=headers, body=body
        )

    async def _lost(self, exchange: Exchange, replica: Replica, error: Exception, send: Send) -> None:
        """Say that an upstream broke off, unless it is the gateway that can open no connection."""
        why = type(error).__name__
        LOG.warning("%s: upstream %s broke off: %s", exchange.request_id, replica.address.name, why)
        if exhausted(error):
            raise UpstreamFailedError(_EXHAUSTED, elsewhere=False) from error
        if isinstance(error, ConnectError):
            exchange.sent = False
            if not isinstance(error, ConnectTimeoutError):
                self._upstreams.unreachable(replica.replica_id)
        await self._broken_off(exchange, ended(Reason.REPLICA_FAILED), send, error)

    async def _broken_off(
        self, exchange: Exchange, answer: ApiError, send: Send, error: Exception | None, *, elsewhere: bool = True
    ) -> None:
        """End what has begun with an error event, then say that the replica failed."""
        exchange.error = answer.code
        if exchange.started and exchange.stream:
            await self.settling.end_stream(exchange, answer, "error", send)
        raise UpstreamFailedError(answer, elsewhere=elsewhere) from error

    # ----------------------------------------------------------------------------------------------------------------
    # Responses in the background

    async def _until_done(self, exchange: Exchange, replica: Replica, response_id: str) -> None:
        """Keep a response in the books until it is made, although its client was answered: it runs all the same.

        Raises
        ------
        CancelledError : it was evicted, or took too long; the replica is told to stop.
        """
        exchange.in_background, exchange.answered = True, False
        exchange.wait(exchange.last_s, AbortReason.TOTAL)
        url = f"/v1/responses/{response_id}"
        try:
            while True:
                await asyncio.sleep(_POLL_S)
                status, answer = await self._poll(replica, "GET", url)
                state = None if answer is None else answer.get("status")
                if state == "cancelled" or (status == 404 and not self.stored.knows(response_id)):
                    # Its client stopped or deleted it: what was made until then is paid for.
                    self.settling.cancel(exchange)
                    return
                if status == 404 or state == "failed":
                    self.settling.fail(exchange, final=True)
                    return
                if state is not None and state not in _RUNNING:
                    usage = usage_of(answer)
                    self.settling.finish(exchange, usage, self.settling.made_tokens(exchange))
                    if usage is not None:
                        known = (usage.prompt_tokens or 0) + exchange.output_tokens
                        await self.stored.add(response_id, Stored(exchange.tenant, replica.replica_id, known))
                    return
        except asyncio.CancelledError:
            if exchange.cut_by is not None:
                await self._poll(replica, "POST", f"{url}/cancel")
            raise

    async def _poll(self, replica: Replica, method: str, path: str) -> tuple[int, dict[str, object] | None]:
        try:
            async with asyncio.timeout(_ASK_S):
                async with await self._upstreams.client.request(
                    method, replica.url(path), headers=bearer_header(replica.address.api_key)
                ) as answer:
                    return answer.status, json_object(await answer.content.read(_MOST_POLLED_BYTES))
        except (UpstreamError, OSError, TimeoutError, ValueError):
            return 0, None
