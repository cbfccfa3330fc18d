//! The contract of avapd on tonic, as one would write it by hand: generated code, a map, an
//! interceptor for the key.
//!
//! ```sh
//! API_KEY=... avapd-bench-tonic CATALOG
//! ```
//!
//! CATALOG is a file that holds a serialized avap.CatalogResponse: what SyncCatalog of avapd
//! answers, so that both serve the same bytes. It listens on a free loopback port, on one thread,
//! and prints the port.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::{env, error, fs};

use prost::Message;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::codegen::BoxStream;
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{Server, server::TcpIncoming};
use tonic::{Request, Response, Status};

use avap::definition_engine_server::{DefinitionEngine, DefinitionEngineServer};
use avap::{
    CatalogChunk, CatalogEvent, CatalogRequest, CatalogResponse, CommandRequest, CommandResponse,
    Empty,
};

mod avap {
    tonic::include_proto!("avap");
}

struct Engine {
    catalog: CatalogResponse,
    commands: HashMap<String, CommandResponse>,
}

impl Engine {
    /// The code of all definitions stays where it is in `raw`: a clone of one shares it.
    fn new(raw: Bytes) -> Result<Self, prost::DecodeError> {
        let catalog = CatalogResponse::decode(raw)?;
        let commands = catalog
            .commands
            .iter()
            .map(|command| (command.name.clone(), command.clone()))
            .collect();
        Ok(Self { catalog, commands })
    }
}

#[tonic::async_trait]
impl DefinitionEngine for Engine {
    async fn get_command(
        &self,
        request: Request<CommandRequest>,
    ) -> Result<Response<CommandResponse>, Status> {
        let name = &request.get_ref().name;
        match self.commands.get(name) {
            Some(command) => Ok(Response::new(command.clone())),
            None => Err(Status::not_found(format!("Command '{name}' not found"))),
        }
    }

    async fn sync_catalog(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<CatalogResponse>, Status> {
        Ok(Response::new(self.catalog.clone()))
    }

    // The streams of avapd are not measured elsewhere.
    type StreamCatalogStream = BoxStream<CatalogChunk>;

    async fn stream_catalog(
        &self,
        _request: Request<CatalogRequest>,
    ) -> Result<Response<Self::StreamCatalogStream>, Status> {
        Err(Status::unimplemented("StreamCatalog"))
    }

    type WatchCatalogStream = BoxStream<CatalogEvent>;

    async fn watch_catalog(
        &self,
        _request: Request<CatalogRequest>,
    ) -> Result<Response<Self::WatchCatalogStream>, Status> {
        Err(Status::unimplemented("WatchCatalog"))
    }
}

/// Compares digests in constant time, as avapd does.
fn authenticate(key: &str) -> impl Interceptor + Clone + use<> {
    let accepted = Sha256::digest(key);
    move |request: Request<()>| {
        let given = request.metadata().get("x-avap-auth");
        match given.map(|key| Sha256::digest(key.as_bytes())) {
            Some(digest) if digest.ct_eq(&accepted).into() => Ok(request),
            _ => Err(Status::unauthenticated("Invalid Credentials")),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn error::Error>> {
    let path = env::args_os()
        .nth(1)
        .ok_or("usage: avapd-bench-tonic CATALOG")?;
    let engine = Engine::new(fs::read(path)?.into())?;
    let service = DefinitionEngineServer::new(engine).max_decoding_message_size(usize::MAX);
    let service = InterceptedService::new(service, authenticate(&env::var("API_KEY")?));
    let incoming = TcpIncoming::bind((Ipv4Addr::LOCALHOST, 0).into())?.with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?.port());
    Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
