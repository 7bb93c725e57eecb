"""What an S3 failure means: its cause and cure in one line, and whether trying again can help.

Failures are known by the error code of the server's answer or, where no answer came, by the name of the
client library's exception; so this table needs no import of the library. The server's own words are
shown for permissions and for codes the table does not have. The library's are not, since what it says of
a broken header can be the session token itself.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestFailure:
    """One failed request.

    `retry`: the same request can succeed a little later. `unclear`: the server may have carried it out.
    `status`: HTTP status, 0 when no answer came. `code`: the server's error code or the exception's name.
    """

    words: str
    retry: bool
    unclear: bool
    status: int
    code: str

    @property
    def not_found(self) -> bool:
        return self.code in ("NoSuchKey", "NotFound", "404")

    @property
    def unconditional(self) -> bool:
        """The server does not know the condition of a conditional write."""
        return self.status == 501 or self.code == "NotImplemented"

    @property
    def unreached(self) -> bool:
        """No request got through: the server may never have been there."""
        return self.code in _UNREACHED


_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
_EXPIRED = "the session token is invalid or has expired; renew the credentials"
_CLOCK = "this machine's clock and the server's differ too much; set this machine's clock (NTP)"
_REGION = "the bucket is in another region{region}; set AWS_DEFAULT_REGION to it"
_NOT_SENT = (
    "the request cannot be sent; check AWS_ENDPOINT_URL, AWS_CA_BUNDLE and line breaks in the credentials"
)
_LOADING = "the credentials could not be loaded; log in again or renew them"

_ANSWERS = {
    "SignatureDoesNotMatch": "the secret key does not fit the access key; correct AWS_SECRET_ACCESS_KEY",
    "InvalidAccessKeyId": "the server does not know the access key; correct AWS_ACCESS_KEY_ID",
    "ExpiredToken": _EXPIRED,
    "InvalidToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "NoSuchBucket": "the bucket does not exist; create it or correct the URL",
    "InvalidBucketName": "no valid bucket name; correct the URL",
    "AccessDenied": "permission denied; grant this user {action} there{said}",
    "403": "permission denied or wrong credentials; check them and grant this user {action} there",
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "KMS": "the KMS key cannot be used; correct NISYNTH_S3_SSE_KMS_KEY_ID or the rights to the key{said}",
    "EntityTooLarge": "the object is too large for one upload; use a smaller run.batch_size",
    "QuotaExceeded": "the bucket's quota is used up; free space there or use another store",
    "XMinioStorageFull": "the server's disk is full; free space there or use another store",
    "NotImplemented": (
        "the server lacks what a run needs; use another store, or set execution.single_writer: true where"
        " it lacks conditional writes alone{said}"
    ),
    "SlowDown": "the server asks for fewer requests (503); try again later or with fewer workers",
    "PreconditionFailed": "the server says the object exists (412) and yet shows none; check the server",
}
_OTHER_ANSWER = (
    "the server answered {code} (HTTP {status}){said}; check AWS_ENDPOINT_URL and the server's log"
)
_CONFLICT = "other writers keep the object busy (409); try again later"

# By the name of the nearest class: (words, retry, unclear).
_EXCEPTIONS = {
    "NoCredentialsError": (f"no credentials found; {_CREDENTIALS}", False, False),
    "PartialCredentialsError": (f"half of the credentials is missing; {_CREDENTIALS}", False, False),
    "CredentialRetrievalError": (_LOADING, False, False),
    "TokenRetrievalError": (_LOADING, False, False),
    "SSOError": (_LOADING, False, False),
    "ProfileNotFound": ("the profile does not exist; correct AWS_PROFILE", False, False),
    "EndpointConnectionError": (
        "cannot connect to {endpoint}; check AWS_ENDPOINT_URL and that the server runs",
        True,
        False,
    ),
    "ConnectTimeoutError": ("no way to {endpoint}; check AWS_ENDPOINT_URL and the network", True, False),
    "ProxyConnectionError": ("cannot connect to the proxy; check HTTPS_PROXY and NO_PROXY", True, False),
    "SSLError": (
        "{endpoint} shows no certificate that is trusted here; name its CA file in AWS_CA_BUNDLE",
        True,
        True,
    ),
    "ReadTimeoutError": ("{endpoint} did not answer in time; check the server and the network", True, True),
    "ConnectionClosedError": ("{endpoint} closed the connection without an answer", True, True),
    "IncompleteReadError": ("the answer broke off; check the network", True, True),
    "ResponseStreamingError": ("the answer broke off; check the network", True, True),
    "FlexibleChecksumError": ("the object does not match its checksum; it is damaged", True, True),
    "ConfigParseError": ("the AWS config file cannot be read; correct it or AWS_CONFIG_FILE", False, False),
    "InvalidConfigError": ("the AWS config file contradicts itself; correct it", False, False),
    "InvalidRegionError": ("AWS_DEFAULT_REGION is not the name of a region; correct it", False, False),
    "HTTPClientError": (_NOT_SENT, True, True),
    "ResponseParserError": ("{endpoint} does not answer as S3 does; check AWS_ENDPOINT_URL", True, True),
    "WebPageAnswer": (
        "{endpoint} answers with a web page, not as S3 does; check AWS_ENDPOINT_URL, and log in to this"
        " network if it asks for it",
        False,
        True,
    ),
    "CompressedAnswer": (
        "a proxy compresses what {endpoint} sends (Content-Encoding); let it pass objects through unchanged",
        False,
        True,
    ),
    "UnconfirmedWrite": (
        "{endpoint} does not confirm that it has the object (no ETag); check AWS_ENDPOINT_URL",
        True,
        True,
    ),
    "SlowBody": ("{endpoint} sends the object too slowly; check the server and the network", True, True),
    "EndlessListing": (
        "{endpoint} lists the same page again and again; use a server that continues its listings",
        False,
        False,
    ),
    "UnknownSize": ("{endpoint} does not say how large the object is; use another server", False, False),
}
_OTHER_EXCEPTION = "the request failed ({code}); check the AWS settings of this machine"
_UNREACHED = (
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ProxyConnectionError",
    "SSLError",
    "HTTPClientError",
)
_PASSING_CODES = ("RequestTimeout", "SlowDown", "Throttling", "BadDigest", "IncompleteBody")
_PASSING_STATUS = (408, 409, 412, 425, 429)


def judge(error: Exception, *, action: str, endpoint: str) -> RequestFailure:
    """Returns what a failed request means.

    `action` is the permission that the request needs, `endpoint` the server's URL.
    """
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        return _judge_answer(answer, action)
    for kind in type(error).__mro__:
        if kind.__name__ in _EXCEPTIONS:
            words, retry, unclear = _EXCEPTIONS[kind.__name__]
            return RequestFailure(words.format(endpoint=endpoint), retry, unclear, 0, kind.__name__)
    name = type(error).__name__
    return RequestFailure(_OTHER_EXCEPTION.format(code=name), retry=False, unclear=True, status=0, code=name)


def _judge_answer(answer: dict[str, dict[str, object]], action: str) -> RequestFailure:
    told = answer.get("Error", {})
    meta = answer.get("ResponseMetadata", {})
    code = str(told.get("Code", ""))
    status = int(str(meta.get("HTTPStatusCode", 0)))
    headers = meta.get("HTTPHeaders")
    region = told.get("Region") or (isinstance(headers, dict) and headers.get("x-amz-bucket-region"))
    said = " ".join(str(told.get("Message", "")).split())[:200]
    template = (
        _CONFLICT
        if status == 409
        else _ANSWERS.get("NotImplemented" if status == 501 else code.split(".")[0], _OTHER_ANSWER)
    )
    words = template.format(
        action=action,
        code=code,
        status=status,
        said=f" ({said})" if said else "",
        region=f" ({region})" if region else "",
    )
    broken = status >= 500 and status != 501
    retry = broken or status in _PASSING_STATUS or code in _PASSING_CODES
    return RequestFailure(words, retry, broken or status in (408, 412), status, code)
