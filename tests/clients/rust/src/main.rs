//! tonic as a client program; ../program.py tells the language of its lines.

use std::collections::HashMap;
use std::env;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Messages as the bytes they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    if bytes.is_empty() {
        return "-".to_owned();
    }
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn bytes(word: &str) -> Bytes {
    let digits = if word == "-" { "" } else { word };
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).expect("hex"))
        .collect()
}

fn tell(line: String) {
    writeln!(io::stdout(), "{line}").expect("somebody listens");
}

fn tell_end(id: &str, status: &Status) {
    let message = hex(status.message().as_bytes());
    tell(format!("end {id} {} {message}", status.code() as i32));
}

/// `words`: kind, id, path, request, timeout, key.
async fn call(channel: Channel, words: Vec<String>) -> Result<(), Status> {
    let [kind, id, path, message, timeout, key] = &words[..] else {
        panic!("six words: {words:?}")
    };
    let mut request = Request::new(bytes(message));
    if timeout != "-" {
        request.set_timeout(Duration::from_millis(
            timeout.parse().expect("milliseconds"),
        ));
    }
    if key != "-" {
        request
            .metadata_mut()
            .insert("x-avap-auth", key.parse().expect("ASCII"));
    }
    let path: PathAndQuery = path.parse().expect("a path");
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    if kind == "unary" {
        let answer = client.unary(request, path, Raw).await?;
        tell(format!("message {id} {}", hex(answer.get_ref())));
        return Ok(());
    }
    let mut answers = client
        .server_streaming(request, path, Raw)
        .await?
        .into_inner();
    while let Some(answer) = answers.message().await? {
        tell(format!("message {id} {}", hex(&answer)));
    }
    Ok(())
}

async fn serve(endpoint: Endpoint, mut lines: mpsc::UnboundedReceiver<String>) {
    let channel = endpoint.connect_lazy();
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(line) = lines.recv().await {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let id = words[1].clone();
        if words[0] == "cancel" {
            // tonic's own way of cancelling: drop the future.
            let call = &running[&id];
            if !call.is_finished() {
                call.abort();
                tell_end(&id, &Status::new(Code::Cancelled, "dropped"));
            }
            continue;
        }
        let one = call(channel.clone(), words);
        let told = id.clone();
        let task = tokio::spawn(async move {
            let status = one.await.err().unwrap_or_else(|| Status::ok(""));
            tell_end(&told, &status);
        });
        running.insert(id, task.abort_handle());
    }
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let mut endpoint =
        Endpoint::from_shared(format!("http://{}", arguments[1])).expect("host:port");
    let keepalive: u64 = arguments[2].parse().expect("milliseconds");
    if keepalive > 0 {
        endpoint = endpoint
            .http2_keep_alive_interval(Duration::from_millis(keepalive))
            .keep_alive_while_idle(true);
    }
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            sender.send(line.expect("text")).expect("somebody reads");
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(serve(endpoint, lines));
}
