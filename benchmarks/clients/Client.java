// Java's own HttpClient as it comes: it offers HTTP/2 with every request (h2c upgrade). Run as one source file.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

class Client {
    static final String BASE = System.getenv("BASE_URL"), KEY = System.getenv("KEY");

    static HttpRequest ask(String fields) {
        String body = "{\"model\":\"tiny\",\"prompt\":\"a b c\"," + fields + "}";
        return HttpRequest.newBuilder(URI.create(BASE + "/v1/completions"))
            .header("authorization", "Bearer " + KEY).header("content-type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(body)).build();
    }

    static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    public static void main(String[] arguments) throws Exception {
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            HttpResponse<String> whole = client.send(ask("\"max_tokens\":2"), HttpResponse.BodyHandlers.ofString());
            check(whole.statusCode() == 200 && whole.body().contains("w0 w1"), version + ": " + whole.body());
            List<String> lines = client.send(ask("\"max_tokens\":5,\"stream\":true"), HttpResponse.BodyHandlers.ofLines())
                .body().filter(line -> line.startsWith("data: ")).collect(Collectors.toList());
            check(lines.size() >= 6 && lines.get(lines.size() - 1).equals("data: [DONE]"), version + ": " + lines);
            String large = "\"max_tokens\":2,\"user\":\"" + "x".repeat(300_000) + "\"";
            check(client.send(ask(large), HttpResponse.BodyHandlers.ofString()).statusCode() == 200, version + ": large");
            List<CompletableFuture<Integer>> many = IntStream.range(0, 5)
                .mapToObj(one -> client.sendAsync(ask("\"max_tokens\":3,\"stream\":true"), HttpResponse.BodyHandlers.ofString())
                    .thenApply(HttpResponse::statusCode)).collect(Collectors.toList());
            for (CompletableFuture<Integer> one : many) check(one.get() == 200, version + ": at a time");
        }
        System.out.println("ok");
    }
}
