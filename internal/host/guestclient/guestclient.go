// Package guestclient talks to roost-guest inside one sandbox: its health, quiescing before
// a capture, and the handshake after a start. It believes no fact that the guest does not
// state, and refuses a handshake whose facts are not what was asked.
package guestclient

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"connectrpc.com/connect"

	guestv1 "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/fault"
)

// Port is where roost-guest listens.
const Port = 49983

// Headers of the guest's two credentials.
const (
	ControlHeader = "X-Control-Token"
	AccessHeader  = "X-Access-Token"
)

// MaxClockSkew is how far the guest's clock may be off after a handshake.
const MaxClockSkew = 500 * time.Millisecond

const baseURL = "http://guest"

// DialFunc opens a TCP connection to a port of the guest.
type DialFunc func(ctx context.Context, port int) (net.Conn, error)

// Client speaks to one guest. Safe for concurrent use.
type Client struct {
	conns     *conns
	transport *http.Transport
	control   guestv1connect.ControlClient
	auth      *controlAuth
}

// New makes a client; nothing is dialled yet.
func New(dial DialFunc, controlToken string) *Client {
	all := newConns(dial)
	transport := &http.Transport{
		DialContext:         all.connect,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     2 * time.Minute,
		DisableCompression:  true,
	}
	auth := &controlAuth{next: transport}
	auth.set(controlToken)
	return &Client{
		conns:     all,
		transport: transport,
		auth:      auth,
		control:   guestv1connect.NewControlClient(&http.Client{Transport: auth}, baseURL),
	}
}

// Transport carries user traffic to the guest; the caller adds credentials.
func (c *Client) Transport() http.RoundTripper { return c.transport }

// CloseIdle ends connections that nobody uses, so that a capture holds none.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

// Close ends every connection, those in use too, for a guest that is gone or another agent's;
// what waits for an answer fails at once. The client is of no use afterwards. Idempotent.
func (c *Client) Close() {
	c.conns.end()
	c.transport.CloseIdleConnections()
}

// WaitReady returns when the guest answers. Each try is short, since a guest that is still
// booting drops packets instead of refusing them.
func (c *Client) WaitReady(ctx context.Context) error {
	for {
		err := c.health(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fault.Wrap(ctx.Err(), "wait for", "guest")
			}
			return fault.New(fault.DeadlineExceeded, "wait for", "guest", "no answer on its port: "+err.Error()).
				WithHint("the guest's console says why: roost logs ID")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *Client) health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fault.New(fault.Unavailable, "check health of", "guest", resp.Status)
	}
	return nil
}

// freezeGrace is what a guest may take to freeze its processes, on top of the sync.
const freezeGrace = 15 * time.Second

// Freeze stops user processes and syncs the guest's file systems.
func (c *Client) Freeze(ctx context.Context, syncTimeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout+freezeGrace)
	defer cancel()
	req := &guestv1.FreezeRequest{SyncTimeoutMs: uint32(syncTimeout.Milliseconds())} //nolint:gosec // a few seconds
	_, err := c.control.Freeze(ctx, connect.NewRequest(req))
	return fault.Wrap(fault.FromConnect(err), "freeze", "user processes")
}

// Hold stops user processes and nothing else, within a time: what is not on the disk yet stays in
// the guest's memory.
func (c *Client) Hold(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	// A guest of an earlier version syncs, and gives up, with its processes running, in time.
	req := &guestv1.FreezeRequest{SkipSync: true, SyncTimeoutMs: uint32(max(within/2, time.Millisecond).Milliseconds())} //nolint:gosec // seconds
	_, err := c.control.Freeze(ctx, connect.NewRequest(req))
	return fault.Wrap(fault.FromConnect(err), "hold", "user processes")
}

// ThawAt is Thaw for a machine that stood still for long: its clock is made the host's first. Where
// the request was on its way for so long that the clock is behind, it is sent again. A guest of an
// earlier version leaves the clock.
func (c *Client) ThawAt(ctx context.Context, generation uint64) error {
	for {
		sent := time.Now()
		req := &guestv1.ThawRequest{Generation: generation, WallClockNs: sent.UnixNano()}
		resp, err := c.control.Thaw(ctx, connect.NewRequest(req))
		if err != nil {
			return fault.Wrap(fault.FromConnect(err), "thaw", "user processes")
		}
		set := resp.Msg.GetClockNs()
		if set == 0 || time.Since(time.Unix(0, set)) <= MaxClockSkew {
			return nil
		}
	}
}

// Thaw lets user processes of the generation run.
func (c *Client) Thaw(ctx context.Context, generation uint64) error {
	_, err := c.control.Thaw(ctx, connect.NewRequest(&guestv1.ThawRequest{Generation: generation}))
	return fault.Wrap(fault.FromConnect(err), "thaw", "user processes")
}

// Grow makes the root file system fill its disk and returns its size.
func (c *Client) Grow(ctx context.Context) (int64, error) {
	resp, err := c.control.Grow(ctx, connect.NewRequest(&guestv1.GrowRequest{}))
	if err != nil {
		return 0, fault.Wrap(fault.FromConnect(err), "grow", "root file system")
	}
	return resp.Msg.GetRootBytes(), nil
}

// statsTimeout bounds a question that a healthy guest answers in a millisecond.
const statsTimeout = 5 * time.Second

// IdleFor is how long the guest has seen neither output nor requests.
func (c *Client) IdleFor(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	resp, err := c.control.Stats(ctx, connect.NewRequest(&guestv1.StatsRequest{}))
	if err != nil {
		return 0, fault.Wrap(fault.FromConnect(err), "read statistics of", "guest")
	}
	return time.Duration(resp.Msg.GetIdleMs()) * time.Millisecond, nil
}
