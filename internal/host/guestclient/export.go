package guestclient

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/roosthq/roost/internal/fault"
)

// The guest's export (internal/guest/export): its route, and the trailers that end it.
const (
	exportPath   = "/roost/export"
	wholeTrailer = "Roost-Export"
	errorTrailer = "Roost-Export-Error"
)

// Export streams the guest's root file system as a tar: no other mount, and nothing that makes it
// one sandbox rather than a template. Freeze it first. Only a whole stream ends with io.EOF: read
// up to that, past the tar's own end. Closing it early ends the export.
func (c *Client) Export(ctx context.Context) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+exportPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.auth.RoundTrip(req)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer func() { _ = resp.Body.Close() }()
		return nil, fault.Wrap(refused(resp), "export", "files of the guest")
	}
	return &export{ctx: ctx, resp: resp}, nil
}

// unreachable: a guest that is not there is Unavailable, unless it was the caller who went.
func unreachable(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fault.Wrap(cause, "export", "files of the guest")
	}
	return fault.Wrap(&fault.Error{Kind: fault.Unavailable, Err: err}, "export", "files of the guest")
}

// refused is what the guest says instead. One that has no such route is of an earlier Roost: it
// came with saved memory.
func refused(resp *http.Response) error {
	var body struct {
		Message string `json:"message"`
	}
	const most = 64 << 10
	_ = json.NewDecoder(io.LimitReader(resp.Body, most)).Decode(&body)
	// The first that had the route refused strangers to it; before, the access token did.
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusUnauthorized {
		return fault.New(fault.FailedPrecondition, "", "", "the guest agent in its memory cannot: "+body.Message).
			WithHint("it is of an earlier Roost: pause the sandbox with --disk-only, resume it, and try again")
	}
	return fault.New(fault.Internal, "", "", resp.Status+": "+body.Message)
}

// export is an answer that is not over before its trailer said so.
type export struct {
	ctx  context.Context //nolint:containedctx // of the request that this answers
	resp *http.Response
}

func (e *export) Read(p []byte) (int, error) {
	n, err := e.resp.Body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, early(e.ctx, err)
	case e.resp.Trailer.Get(wholeTrailer) == "whole":
		return n, io.EOF
	default:
		return n, early(e.ctx, e.said())
	}
}

func (e *export) Close() error { return e.resp.Body.Close() }

// said is the guest's own reason.
func (e *export) said() error {
	text := e.resp.Trailer.Get(errorTrailer)
	if plain, err := strconv.Unquote(text); err == nil {
		text = plain
	}
	if text == "" {
		text = "the guest did not say that this was all"
	}
	return errors.New(text)
}

func early(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil {
		return fault.Wrap(cause, "export", "files of the guest")
	}
	return &fault.Error{
		Kind: fault.Unavailable, Op: "export", Object: "files of the guest",
		Err: errors.Join(errors.New("the stream ended early"), err),
	}
}
