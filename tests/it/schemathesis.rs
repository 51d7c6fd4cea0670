//! The API is called as its document says, and as it does not: whatever comes, no answer is a fault of the server's, and each is
//! one that the document knows, in the form that it tells.

use super::support::*;

/// What must hold of each answer. Whether a body of the right types is also a good one is not in the document.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,unsupported_method,ignored_auth";

/// Calls routes with a key, of those only whose path is like `paths`; `names` are of what is there.
async fn call(server: &Server, key: &str, paths: [&str; 2], names: &Value) {
    let Some(mut command) = python::schemathesis() else { return };
    let mut settings = "[parameters]\n".to_owned();
    for (name, value) in names.as_object().unwrap() {
        settings += &format!("{name} = {value}\n");
    }
    let folder = tempfile::TempDir::new().unwrap();
    let config = folder.path().join("schemathesis.toml");
    std::fs::write(&config, settings).unwrap();
    command.current_dir(folder.path()).env("NO_COLOR", "1").arg("--config-file").arg(config);
    command.arg("run").arg(format!("{}/openapi.json", server.admin.base()));
    command.args(["--header", &format!("Authorization: Bearer {key}")]).args(paths).args(["--checks", CHECKS]);
    // A slow machine is no fault.
    command.args(["--request-timeout", "60", "--suppress-health-check", "all"]);
    // The same calls every time.
    command.args([
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        "8",
        "--seed",
        "7",
        "--continue-on-failure",
    ]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    // It did call.
    let cases = told.lines().find_map(|line| line.trim().split_once(" generated, ")?.0.parse::<u32>().ok());
    assert!(cases.is_some_and(|cases| cases > 500), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_to_a_partner_is_documented() {
    let server = Server::start_with(|config| config.intake.max_lag_ms = 60_000).await;
    let partner = server.partner("probed").await;
    let set = partner.set(json!({"name": "news"})).await;
    let hook = json!({"name": "hook", "webhook_url": "https://receiver.example/"});
    let destination = partner.destination(&set, hook).await;
    let bounce = partner.event("HardBounce");
    partner.stream(std::slice::from_ref(&bounce)).await;
    let names = json!({
        "config_set_id": set, "destination_id": destination, "message_id": bounce["message_id"],
        "email": bounce["recipient"], "identity_type": "DOMAIN", "identity_value": partner.domain,
    });
    call(&server, partner.api.key(), ["--exclude-path-regex", "/admin"], &names).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_to_the_administrator_is_documented() {
    let server = Server::start_with(|config| config.intake.max_lag_ms = 60_000).await;
    let partner = server.partner("probed").await;
    let bounce = partner.event("HardBounce");
    partner.stream(std::slice::from_ref(&bounce)).await;
    let names = json!({
        "account_id": partner.account_id, "email": bounce["recipient"],
        "identity_type": "DOMAIN", "identity_value": partner.domain,
    });
    call(&server, server.admin.key(), ["--include-path-regex", "/admin"], &names).await;
}
