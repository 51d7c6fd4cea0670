//! From where an account may be used.

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use sendtrail_schemas::directory::KeyOwner;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::networks::{self, ClientAddress, MAX_NETWORKS};
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::record::{Change, Networks};
use sendtrail_schemas::web::{Path, account_id, invalid, ok};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Ingest;
use crate::body::Json;
use crate::submit::Stamp;

/// From where keys may be used.
#[derive(Deserialize, ToSchema)]
pub(super) struct NetworksRequest {
    /// Networks as CIDR, or addresses, IPv4 and IPv6; at most 100. None: from everywhere.
    networks: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct NetworksView {
    networks: Vec<String>,
    /// Where this request came from.
    your_address: Option<String>,
}

impl NetworksRequest {
    fn read(&self) -> Result<Vec<ipnet::IpNet>, Problem> {
        if self.networks.len() > MAX_NETWORKS {
            return Err(invalid(format!("networks: at most {MAX_NETWORKS}")));
        }
        let read = self.networks.iter().map(|text| networks::parse(text));
        let mut read: Vec<_> = read.collect::<Result<_, _>>().map_err(|cause| invalid(format!("networks: {cause}")))?;
        read.sort_unstable();
        read.dedup();
        Ok(read)
    }
}

impl Ingest {
    async fn set_networks(
        &self,
        account: AccountId,
        stamp: Stamp,
        networks: &[ipnet::IpNet],
        from: Option<ClientAddress>,
    ) -> Result<Response, Problem> {
        let networks = networks.iter().map(ToString::to_string).collect();
        self.command(account, stamp, Change::SetNetworks(Networks { networks })).await?;
        self.shown_networks(account, from)
    }

    fn shown_networks(&self, account: AccountId, from: Option<ClientAddress>) -> Result<Response, Problem> {
        let networks = self.account(account)?.networks.clone();
        Ok(ok(NetworksView { networks, your_address: from.map(|from| from.0.to_string()) }))
    }
}

/// Show from where the account's keys may be used, and where this request came from.
#[utoipa::path(get, path = "/ip-allowlist", tag = "networks",
    responses((status = 200, description = "the networks; none: everywhere", body = inline(NetworksView)),
        (status = 403, description = "IP_BLOCKED")))]
pub(super) async fn get(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    from: Option<Extension<ClientAddress>>,
) -> Result<Response, Problem> {
    ingest.shown_networks(owner.account.id(), from.map(|from| from.0))
}

/// Set from where the account's keys may be used. It must hold the address that this request comes from, so that nobody
/// locks themselves out.
#[utoipa::path(put, path = "/ip-allowlist", tag = "networks", request_body = NetworksRequest,
    responses((status = 200, description = "the networks", body = inline(NetworksView)), (status = 400, description = "INVALID_REQUEST"),
        (status = 403, description = "IP_BLOCKED")))]
pub(super) async fn put(
    State(ingest): State<Ingest>,
    Extension(owner): Extension<KeyOwner>,
    from: Option<Extension<ClientAddress>>,
    stamp: Stamp,
    Json(request): Json<NetworksRequest>,
) -> Result<Response, Problem> {
    let (read, from) = (request.read()?, from.map(|from| from.0));
    if !read.is_empty() && !from.is_some_and(|from| networks::hold(&read, from.0)) {
        let from = from.map_or_else(|| "unknown".to_owned(), |from| from.0.to_string());
        return Err(invalid(format!("networks: your own address, {from}, is in none of them")));
    }
    ingest.set_networks(owner.account.id(), stamp, &read, from).await
}

/// Show from where an account's keys may be used.
#[utoipa::path(get, path = "/accounts/{account_id}/ip-allowlist", tag = "admin", operation_id = "admin_get_networks",
    params(("account_id" = String, Path)),
    responses((status = 200, description = "the networks; none: everywhere", body = inline(NetworksView)),
        (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn admin_get(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    from: Option<Extension<ClientAddress>>,
) -> Result<Response, Problem> {
    ingest.shown_networks(account_id(&account)?, from.map(|from| from.0))
}

/// Set from where an account's keys may be used, wherever this request comes from.
#[utoipa::path(put, path = "/accounts/{account_id}/ip-allowlist", tag = "admin", operation_id = "admin_put_networks",
    params(("account_id" = String, Path)), request_body = NetworksRequest,
    responses((status = 200, description = "the networks", body = inline(NetworksView)), (status = 400, description = "INVALID_REQUEST"),
        (status = 404, description = "PARTNER_NOT_FOUND")))]
pub(super) async fn admin_put(
    State(ingest): State<Ingest>,
    Path(account): Path<String>,
    from: Option<Extension<ClientAddress>>,
    stamp: Stamp,
    Json(request): Json<NetworksRequest>,
) -> Result<Response, Problem> {
    let account = account_id(&account)?;
    ingest.account(account)?;
    let read = request.read()?;
    ingest.set_networks(account, stamp, &read, from.map(|from| from.0)).await
}
