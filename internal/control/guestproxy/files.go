package guestproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/internal/fault"
)

// maxErrorBody is how much of a guest's error answer is read.
const maxErrorBody = 64 << 10

// CheckPath refuses what cannot be a path.
func CheckPath(path string) error {
	if path == "" || len(path) > 4095 || strings.ContainsRune(path, 0) {
		return fault.New(fault.Invalid, "", "",
			fmt.Sprintf("path is %.64q: must have 1 to 4095 bytes, none of them zero", path))
	}
	return nil
}

// Stat says what is at a path.
func (g *Guest) Stat(ctx context.Context, path string) (*filesystem.EntryInfo, error) {
	resp, err := g.files.Stat(ctx, request(g, &filesystem.StatRequest{Path: path}))
	if err != nil {
		return nil, g.callError(err, "stat", path)
	}
	return resp.Msg.GetEntry(), nil
}

// List returns a folder's entries, to a depth (1 = its own).
func (g *Guest) List(ctx context.Context, path string, depth int) ([]*filesystem.EntryInfo, error) {
	resp, err := g.files.ListDir(ctx, request(g, &filesystem.ListDirRequest{Path: path, Depth: uint32(depth)}))
	if err != nil {
		return nil, g.callError(err, "list", path)
	}
	return resp.Msg.GetEntries(), nil
}

// MakeDir makes a folder and its parents.
func (g *Guest) MakeDir(ctx context.Context, path string) (*filesystem.EntryInfo, error) {
	resp, err := g.files.MakeDir(ctx, request(g, &filesystem.MakeDirRequest{Path: path}))
	if err != nil {
		return nil, g.callError(err, "make folder", path)
	}
	return resp.Msg.GetEntry(), nil
}

// Remove removes a file or a whole folder.
func (g *Guest) Remove(ctx context.Context, path string) error {
	_, err := g.files.Remove(ctx, request(g, &filesystem.RemoveRequest{Path: path}))
	return g.callError(err, "remove", path)
}

// Body is a stream out of the guest. Length is -1 when the guest did not say.
type Body struct {
	io.ReadCloser
	Length int64
}

// Read opens a file's bytes.
func (g *Guest) Read(ctx context.Context, path string) (*Body, error) {
	return g.get(ctx, "/files", path, "read")
}

// ReadArchive opens a folder or file as a tar stream.
func (g *Guest) ReadArchive(ctx context.Context, path string) (*Body, error) {
	return g.get(ctx, "/archive", path, "archive")
}

// Write writes a file from a stream; mode is octal digits or "".
func (g *Guest) Write(ctx context.Context, path, mode string, body io.Reader) error {
	q := url.Values{}
	if mode != "" {
		q.Set("mode", mode)
	}
	return g.put(ctx, http.MethodPost, "/files", path, "write", q, body)
}

// WriteArchive unpacks a tar stream below a path.
func (g *Guest) WriteArchive(ctx context.Context, path string, body io.Reader) error {
	return g.put(ctx, http.MethodPut, "/archive", path, "unpack archive to", url.Values{}, body)
}

func (g *Guest) get(ctx context.Context, route, path, op string) (*Body, error) {
	resp, err := g.send(ctx, http.MethodGet, route, path, op, url.Values{}, nil) //nolint:bodyclose // the caller gets the body
	if err != nil {
		return nil, err
	}
	return &Body{resp.Body, resp.ContentLength}, nil
}

func (g *Guest) put(ctx context.Context, method, route, path, op string, q url.Values, body io.Reader) error {
	resp, err := g.send(ctx, method, route, path, op, q, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Read to the end, so that the connection is used again.
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
	return fault.Wrap(err, op, path)
}

// send makes a request and turns an error answer into a fault.
func (g *Guest) send(ctx context.Context, method, route, path, op string, q url.Values, body io.Reader) (*http.Response, error) {
	q.Set("path", path)
	if g.user != "" {
		q.Set("username", g.user)
	}
	req, err := http.NewRequestWithContext(ctx, method, g.base+route+"?"+q.Encode(), body)
	if err != nil {
		return nil, fault.Wrap(err, op, path)
	}
	g.as(req.Header)
	// Unasked, the transport would ask for gzip and hide the length.
	req.Header.Set("Accept-Encoding", "identity")
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, g.transportError(ctx, err, op, path)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, g.callError(answerError(resp), op, path)
	}
	return resp, nil
}

func (g *Guest) transportError(ctx context.Context, err error, op, path string) error {
	if ctx.Err() != nil {
		return fault.Wrap(ctx.Err(), op, path)
	}
	if f := new(fault.Error); errors.As(err, &f) {
		return g.callError(f, op, path) // the caller's own body failed
	}
	return &fault.Error{Kind: fault.Unavailable, Op: op, Object: path + " in sandbox " + g.id, Err: err}
}

// statusKinds are the kinds behind the guest's and the proxy's HTTP answers.
var statusKinds = map[int]fault.Kind{
	http.StatusBadRequest:            fault.Invalid,
	http.StatusUnauthorized:          fault.Unauthenticated,
	http.StatusForbidden:             fault.PermissionDenied,
	http.StatusNotFound:              fault.NotFound,
	http.StatusConflict:              fault.FailedPrecondition,
	http.StatusPreconditionFailed:    fault.FailedPrecondition,
	http.StatusRequestEntityTooLarge: fault.Invalid,
	http.StatusTooManyRequests:       fault.ResourceExhausted,
	http.StatusNotImplemented:        fault.Unimplemented,
	http.StatusBadGateway:            fault.Unavailable,
	http.StatusServiceUnavailable:    fault.Unavailable,
	http.StatusGatewayTimeout:        fault.DeadlineExceeded,
	http.StatusInsufficientStorage:   fault.ResourceExhausted,
}

// answerError reads {"message"} (guest), {"code","message"} (Connect) or plain text.
func answerError(resp *http.Response) error {
	raw, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	kind, known := statusKinds[resp.StatusCode]
	if !known {
		kind = fault.Internal
	}
	var body struct {
		Code    any    `json:"code"`
		Message string `json:"message"`
	}
	text := strings.TrimSpace(string(raw))
	if json.Unmarshal(raw, &body) == nil && body.Message != "" {
		text = body.Message
		if name, ok := body.Code.(string); ok {
			_ = kind.UnmarshalText([]byte(name)) // leaves kind alone when it is not a kind's name
		}
	}
	if text == "" {
		text = resp.Status
	}
	return fault.New(kind, "", "", text).WithHint(resp.Header.Get("Roost-Hint"))
}
