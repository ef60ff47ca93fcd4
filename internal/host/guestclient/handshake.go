package guestclient

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	guestv1 "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/fault"
)

// Identity is who a guest shall be from now on.
type Identity struct {
	SandboxID    string
	Generation   uint64
	Hostname     string
	MachineID    string
	AccessToken  string
	ControlToken string
	Envs         map[string]string
	DefaultUser  string
	// Grow asks for the root file system to fill its disk.
	Grow bool
}

// Facts are what the guest measured after it made the identity true.
type Facts struct {
	ClockSkew time.Duration
	RootBytes int64
	BootID    string
}

// entropyBytes is what each handshake mixes into the guest's random source.
const entropyBytes = 64

// Handshake makes a booted or restored guest into id and checks what it answers. User
// processes are frozen before and after it; only Thaw lets them run.
//
// The guest sets its clock to when the request was sent, so it is late by the time on the way.
// Where that can be more than MaxClockSkew (a busy host) the handshake is repeated, which sets the
// clock again, until the facts are true or ctx ends.
func (c *Client) Handshake(ctx context.Context, id Identity) (Facts, error) {
	req := &guestv1.RestoreRequest{
		SandboxId: id.SandboxID, Generation: id.Generation, Hostname: id.Hostname,
		MachineId: id.MachineID, AccessToken: id.AccessToken, ControlToken: id.ControlToken,
		Envs: id.Envs, DefaultUser: id.DefaultUser, Grow: id.Grow,
		Entropy: make([]byte, entropyBytes),
	}
	_, _ = rand.Read(req.Entropy) // never fails (crypto/rand)
	for {
		facts, late, err := c.restore(ctx, id, req)
		if err != nil {
			return Facts{}, err
		}
		if late <= MaxClockSkew {
			c.auth.set(id.ControlToken)
			return facts, nil
		}
	}
}

// restore is one try of a Handshake; late is by how much the guest's clock can be behind.
func (c *Client) restore(ctx context.Context, id Identity, req *guestv1.RestoreRequest) (facts Facts, late time.Duration, err error) {
	sent := time.Now()
	req.WallClockNs = sent.UnixNano()
	resp, err := c.control.Restore(ctx, connect.NewRequest(req))
	if err != nil {
		return Facts{}, 0, fault.Wrap(fault.FromConnect(err), "hand identity to", "guest")
	}
	received := time.Now()
	facts, err = checkFacts(id, resp.Msg, sent, received)
	// What the guest spent on its answer its clock has counted; the rest was the way there and back.
	return facts, received.Sub(time.Unix(0, resp.Msg.GetClockNs())), err
}

// checkFacts compares each fact with what was asked. The guest read its clock at some moment
// between sent and received: the skew is its distance from that interval.
func checkFacts(id Identity, got *guestv1.RestoreResponse, sent, received time.Time) (Facts, error) {
	facts := Facts{RootBytes: got.GetRootBytes(), BootID: got.GetBootId()}
	clock := time.Unix(0, got.GetClockNs())
	switch {
	case clock.Before(sent):
		facts.ClockSkew = clock.Sub(sent)
	case clock.After(received):
		facts.ClockSkew = clock.Sub(received)
	}
	refuse := func(fact string, have, want any) error {
		return fault.New(fault.Internal, "check handshake of", "guest",
			fmt.Sprintf("%s is %v, not %v", fact, have, want))
	}
	switch {
	case facts.ClockSkew.Abs() > MaxClockSkew:
		return facts, refuse("clock skew", facts.ClockSkew, "within "+MaxClockSkew.String())
	case !got.GetRandomReseeded():
		return facts, refuse("random source reseeded", false, true)
	case !got.GetTokenRenewed():
		return facts, refuse("token renewed", false, true)
	case got.GetHostname() != id.Hostname:
		return facts, refuse("hostname", got.GetHostname(), id.Hostname)
	case got.GetMachineId() != id.MachineID:
		return facts, refuse("machine id", got.GetMachineId(), id.MachineID)
	case got.GetGeneration() != id.Generation:
		return facts, refuse("generation", got.GetGeneration(), id.Generation)
	}
	return facts, nil
}

// controlAuth puts the current control token on every control request.
type controlAuth struct {
	token atomic.Pointer[string]
	next  http.RoundTripper
}

func (a *controlAuth) set(token string) { a.token.Store(&token) }

func (a *controlAuth) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set(ControlHeader, *a.token.Load())
	return a.next.RoundTrip(req)
}
