"""An OTLP collector over OpenTelemetry's own protocol files: runs a command with its address, then asserts what came.

Usage: receiver.py PAYMENT_REQUEST_ID COMMAND…   (the command finds the address in OTLP_ENDPOINT)
"""

import os
import subprocess
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

spans, logs, metrics, resources = [], [], [], []


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        for group in request.resource_spans:
            resources.append(group.resource)
            for scope in group.scope_spans:
                spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        for group in request.resource_logs:
            resources.append(group.resource)
            for scope in group.scope_logs:
                logs.extend(scope.log_records)
        return logs_service_pb2.ExportLogsServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        for group in request.resource_metrics:
            resources.append(group.resource)
            for scope in group.scope_metrics:
                metrics.extend(scope.metrics)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def attributes(of):
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in of.attributes}


def one(what, found):
    found = list(found)
    assert len(found) == 1, f"{what}: {len(found)} of them: {found}"
    return found[0]


def check_trace(payment):
    http = one("HTTP span", (span for span in spans if span.name.startswith("POST ")))
    trace = [span for span in spans if span.trace_id == http.trace_id]
    by_id = {span.span_id: span for span in trace}
    assert http.parent_span_id == b"", "it begins at the bridge"
    for span in trace:
        assert span is http or span.parent_span_id in by_id, f"not connected: {span}"
        assert span.status.code != Status.STATUS_CODE_ERROR, span

    def child(parent, name, kind):
        of = (span for span in trace if span.parent_span_id == parent.span_id)
        return one(name, (span for span in of if (span.name, span.kind) == (name, kind)))

    method = "alipayplus.cancel.v1.CancelService/CancelPayment"
    client = child(http, method, Span.SPAN_KIND_CLIENT)
    server = child(client, method, Span.SPAN_KIND_SERVER)
    wait = child(server, "engine wait", Span.SPAN_KIND_INTERNAL)
    commit = child(server, "store commit", Span.SPAN_KIND_CLIENT)
    assert len(trace) == 5, [span.name for span in trace]
    assert http.kind == Span.SPAN_KIND_SERVER
    assert wait.end_time_unix_nano <= commit.end_time_unix_nano

    path = "/aps/api/v1/payments/cancelPayment"
    ours = {"alipayplus.payment_request_id": payment, "alipayplus.result_code": "SUCCESS"}
    rpc = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": "OK"}
    for span, expected in [
        (http, {"http.request.method": "POST", "http.route": path, "url.scheme": "http",
                "http.response.status_code": 200, **ours}),
        (client, rpc),
        (server, {**rpc, **ours}),
        (commit, {"db.system.name": "sqlite", "db.operation.batch.size": 1}),
    ]:
        found = attributes(span)
        for name, value in expected.items():
            assert found.get(name) == value, f"{name} of {span.name}: {found}"
    return server


def check_log(payment, server):
    line = one("line", (log for log in logs if attributes(log).get("payment_request_id") == payment))
    assert line.body.string_value == "cancel_payment answered", line
    assert (line.trace_id, line.span_id) == (server.trace_id, server.span_id), line
    assert attributes(line)["result_code"] == "SUCCESS", line


def check_metrics():
    last = {metric.name: metric for metric in metrics}
    for name, unit, labels in [
        ("http.server.request.duration", "s", {"http.request.method": "POST", "http.response.status_code": 200}),
        ("rpc.server.call.duration", "s", {"rpc.system.name": "grpc", "rpc.response.status_code": "OK"}),
        ("alipayplus.cancel.requests", "{request}",
         {"api": "cancelPayment", "front": "bridge", "result_code": "SUCCESS"}),
        ("alipayplus.cancel.commit.duration", "s", {"result": "ok"}),
        ("alipayplus.cancel.queue.wait", "s", {}),
    ]:
        metric = last.get(name)
        assert metric is not None, f"no {name} in {sorted(last)}"
        assert metric.unit == unit and metric.description, metric
        points = getattr(metric, metric.WhichOneof("data")).data_points
        fits = [point for point in points if labels.items() <= attributes(point).items()]
        assert fits, f"{name}: {points}"
        counts = [getattr(point, "count", 0) or getattr(point, "as_int", 0) for point in fits]
        assert sum(counts) >= 1, f"{name}: {fits}"
    assert len(last) >= 20, sorted(last)


def main():
    payment, command = sys.argv[1], sys.argv[2:]
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    subprocess.run(command, check=True, env={**os.environ, "OTLP_ENDPOINT": f"http://127.0.0.1:{port}"})
    server.stop(5).wait()
    check_log(payment, check_trace(payment))
    check_metrics()
    for resource in resources:
        found = attributes(resource)
        assert found["service.name"] == "alipayplus-cancel" and found["service.instance.id"], found
    print(f"one connected trace of {len(spans)} spans, {len(logs)} lines, {len({m.name for m in metrics})} metrics")


main()
