package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// client is the generated API client with its server and key.
type client struct {
	api  *v1.ClientWithResponses
	http *http.Client
	credentials
}

// connect makes a client; nothing is sent yet.
func (a *app) connect() (*client, error) {
	creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	return newClient(creds)
}

func newClient(creds credentials) (*client, error) {
	c := &client{credentials: creds, http: &http.Client{
		Transport: transport(),
		// net/http would carry X-API-Key along to wherever a redirect points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	api, err := v1.NewClientWithResponses(creds.URL, v1.WithHTTPClient(c.http), v1.WithRequestEditorFn(c.authorize))
	if err != nil {
		return nil, err
	}
	c.api = api
	return c, nil
}

// transport has no limit on a whole request: creates boot, files are big. Dead peers are
// noticed by TCP keep-alive.
func transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

func (c *client) authorize(_ context.Context, req *http.Request) error {
	if c.Key != "" {
		req.Header.Set("X-API-Key", c.Key)
	}
	return nil
}

// reply is what the generated client makes of an answer that it read whole.
type reply interface {
	GetBody() []byte
	Status() string
	StatusCode() int
	ContentType() string
}

// answer takes a JSON answer, or the error that came in its place.
func answer[T any, R reply](r R, err error) (T, error) {
	var out T
	if err := settled(r, err); err != nil {
		return out, err
	}
	if err := json.Unmarshal(r.GetBody(), &out); err != nil {
		return out, notRoost("read the answer: " + err.Error())
	}
	return out, nil
}

// settled takes an answer whose content does not matter.
func settled[R reply](r R, err error) error {
	switch {
	case err != nil:
		return unreachable(err)
	case r.StatusCode() >= 200 && r.StatusCode() < 300:
		return nil
	default:
		return problem(r.Status(), r.ContentType(), r.GetBody())
	}
}

// content is the body of a successful answer that is not read yet; the caller closes it.
func content(resp *http.Response, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, unreachable(err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp.Body, nil
	}
	return nil, failedAnswer(resp)
}

// failedAnswer reads and closes an answer that is an error.
func failedAnswer(resp *http.Response) error {
	defer func() { _ = resp.Body.Close() }()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return problem(resp.Status, resp.Header.Get("Content-Type"), text)
}

// problem is the error in a failed answer's body.
func problem(status, contentType string, text []byte) error {
	kind, _, _ := mime.ParseMediaType(contentType)
	var body v1.ErrorBody
	if kind != "application/json" || json.Unmarshal(text, &body) != nil || body.Error.Message == "" {
		return notRoost("the server answered " + status)
	}
	return fromAPI(body.Error)
}

func notRoost(what string) error {
	return fault.New(fault.Internal, "", "", what).
		WithHint("is this the address of a Roost server? `roost version` shows which one is asked")
}

// unreachable explains a request that got no answer. A failure of the request's own body (a
// local file, say) is passed as it is.
func unreachable(err error) error {
	var f *fault.Error
	var u *url.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.Is(err, context.Canceled):
		return err
	case !errors.As(err, &u):
		return notRoost("read the answer: " + err.Error())
	}
	server := u.URL
	if at, perr := url.Parse(u.URL); perr == nil {
		server = at.Scheme + "://" + at.Host
	}
	return fault.New(fault.Unavailable, "", "", "cannot reach "+server+": "+rootCause(u.Err)).
		WithHint("is `roost up` running there? --url or ROOST_URL choose another server")
}

func rootCause(err error) string {
	var errno syscall.Errno
	var dns *net.DNSError
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		return dns.Err
	default:
		return err.Error()
	}
}
