"""The certificate that the legs of a process share, and what its DTLS context agrees to."""

import pytest
from aiortc.rtcdtlstransport import SRTP_PROFILES
from OpenSSL import SSL

from media.dtls import RENEW_AFTER_S, Certificates, SharedCertificate


@pytest.fixture(scope="module")
def ours() -> SSL.Context:
    return SharedCertificate.generateCertificate()._create_ssl_context(SRTP_PROFILES)


def peer(ciphers: bytes, *, newest: int | None = None, certified: bool = True) -> SSL.Context:
    """Return the context of a peer that speaks these suites of DTLS 1.2 only."""
    context = SSL.Context(SSL.DTLS_METHOD)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_cipher_list(ciphers)
    context.set_tlsext_use_srtp(b"SRTP_AES128_CM_SHA1_80")
    context.set_verify(SSL.VERIFY_PEER, lambda *args: True)
    context.set_max_proto_version(newest or 0xFEFD)
    if certified:
        certificate = SharedCertificate.generateCertificate()
        context.use_certificate(certificate._cert)
        context.use_privatekey(certificate._key)
    return context


def shake(client: SSL.Context, server: SSL.Context) -> SSL.Connection:
    """Return the client's end once both have agreed. Raises: SSL.Error."""
    ends = SSL.Connection(client), SSL.Connection(server)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    done: set[SSL.Connection] = set()
    for _ in range(20):
        for one, other in (ends, ends[::-1]):
            try:
                one.do_handshake()
                done.add(one)
            except SSL.WantReadError:
                pass
            try:
                while data := one.bio_read(65_536):
                    other.bio_write(data)
            except SSL.WantReadError:
                pass
        if len(done) == 2:
            return ends[0]
    raise SSL.Error("no agreement")


GOOD = b"ECDHE-ECDSA-AES128-GCM-SHA256"


def test_only_suites_that_encrypt_and_authenticate_in_one_are_offered(ours: SSL.Context) -> None:
    names = SSL.Connection(ours).get_cipher_list()

    assert GOOD.decode() in names
    assert all("GCM" in name or "CHACHA20_POLY1305" in name.replace("-", "_") for name in names)
    assert all(name.startswith(("ECDHE-ECDSA-", "TLS_")) for name in names), "forward secrecy"


@pytest.mark.parametrize("we_call", [True, False])
@pytest.mark.parametrize("suite", [GOOD, b"ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_a_peer_with_a_good_suite_is_agreed_with(ours: SSL.Context, suite: bytes, we_call: bool) -> None:
    theirs = peer(suite)
    client = shake(ours, theirs) if we_call else shake(theirs, ours)

    assert client.get_cipher_name() == suite.decode()
    assert client.get_selected_srtp_profile() == b"SRTP_AES128_CM_SHA1_80"


@pytest.mark.parametrize("we_call", [True, False])
@pytest.mark.parametrize("suite", [b"ECDHE-ECDSA-AES128-SHA", b"ECDHE-ECDSA-AES256-SHA"])
def test_a_peer_with_cbc_only_is_not(ours: SSL.Context, suite: bytes, we_call: bool) -> None:
    theirs = peer(suite)
    with pytest.raises(SSL.Error):
        shake(ours, theirs) if we_call else shake(theirs, ours)


def test_dtls_1_0_is_not_spoken(ours: SSL.Context) -> None:
    with pytest.raises(SSL.Error):
        shake(peer(GOOD + b":ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", newest=0xFEFF), ours)


def test_a_peer_without_a_certificate_is_refused(ours: SSL.Context) -> None:
    with pytest.raises(SSL.Error):
        shake(peer(GOOD, certified=False), ours)


def test_a_certificate_serves_a_day_and_is_never_used_again() -> None:
    certificates = Certificates()
    first = certificates.current(now=5.0)

    assert certificates.current(now=5.0 + RENEW_AFTER_S) is first
    second = certificates.current(now=5.0 + RENEW_AFTER_S + 0.1)
    assert second is not first
    assert second.fingerprint != first.fingerprint
    assert certificates.current(now=2 * RENEW_AFTER_S) is second
    assert Certificates().current(now=5.0).fingerprint != first.fingerprint


def test_a_key_is_an_elliptic_curve_key_of_its_own() -> None:
    keys = {SharedCertificate.generateCertificate()._key.private_numbers().private_value for _ in range(3)}

    assert len(keys) == 3


def test_the_context_is_made_once(ours: SSL.Context) -> None:
    certificate = SharedCertificate.generateCertificate()

    assert certificate._create_ssl_context(SRTP_PROFILES) is certificate._create_ssl_context(SRTP_PROFILES)
    assert certificate._create_ssl_context(SRTP_PROFILES) is not ours
