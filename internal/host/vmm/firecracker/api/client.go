// Package api speaks Firecracker's HTTP API over its unix socket: the endpoints and fields that
// Roost uses, as of 1.15 and later. firecrackertest/api.json describes them; tests hold both to it.
//
// Every call has a deadline of its own and a connection of its own, and reads a bounded answer. A
// refusal is fault.FailedPrecondition with what Firecracker said (ResourceExhausted where that is
// a full disk); a connection that cannot be made or breaks is fault.Unavailable.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// quick bounds calls that do no I/O to speak of. A vCPU may take 30 s to stop.
	quick = 40 * time.Second
	// long bounds those that read or write a VM's memory.
	long = 15 * time.Minute
	// maxAnswer bounds what is read of an answer.
	maxAnswer = 256 << 10
)

// Client calls one VM's API.
type Client struct{ http http.Client }

// New makes a Client; dial connects to the socket.
func New(dial func(context.Context) (net.Conn, error)) *Client {
	return &Client{http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableKeepAlives: true, DisableCompression: true,
	}}}
}

func (c *Client) do(ctx context.Context, most time.Duration, method, path string, body, answer any) error {
	object := method + " " + path
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var raw io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fault.Wrap(err, "encode", object)
		}
		raw = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, raw)
	if err != nil {
		return fault.Wrap(err, "make request", object)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return unreachable(ctx, err, object)
	}
	defer resp.Body.Close()
	return understand(ctx, resp, object, answer)
}

// unreachable keeps apart a call that took too long and one that nobody answered.
func unreachable(ctx context.Context, err error, object string) error {
	if cause := ctx.Err(); cause != nil {
		return fault.Wrap(cause, "call firecracker", object)
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "call firecracker", Object: object, Err: err}
}

func understand(ctx context.Context, resp *http.Response, object string, answer any) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return unreachable(ctx, err, object)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return refusal(resp.StatusCode, raw, object)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fault.Wrap(fmt.Errorf("its answer is not as described: %w", err), "call firecracker", object)
	}
	return nil
}

func refusal(status int, raw []byte, object string) error {
	var said Fault
	if err := json.Unmarshal(raw, &said); err != nil || said.Message == "" {
		said.Message = fmt.Sprintf("status %d without a reason", status)
	}
	e := &fault.Error{Kind: fault.FailedPrecondition, Op: "call firecracker", Object: object, Err: errors.New(said.Message)}
	switch {
	case strings.Contains(said.Message, fmt.Sprintf("os error %d)", unix.ENOSPC)):
		e.Kind, e.Err = fault.ResourceExhausted, fmt.Errorf("%s (%w)", said.Message, unix.ENOSPC)
	case strings.Contains(said.Message, fmt.Sprintf("os error %d)", unix.EDQUOT)):
		e.Kind, e.Err = fault.ResourceExhausted, fmt.Errorf("%s (%w)", said.Message, unix.EDQUOT)
	case status >= http.StatusInternalServerError:
		e.Kind = fault.Internal
	}
	return e
}
