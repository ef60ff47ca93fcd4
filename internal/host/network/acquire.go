package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

var sandboxIDs = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Acquire gives a sandbox a slot with a port of the kind, from the pool or freshly made. A
// sandbox has one slot: a second is fault.AlreadyExists. None left is fault.ResourceExhausted.
func (m *Manager) Acquire(ctx context.Context, sandboxID string, kind PortKind) (*Slot, error) {
	if !kind.valid() {
		return nil, fault.New(fault.Invalid, "check", fmt.Sprintf("port kind %q", kind), wrongKind)
	}
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := m.claimOwner(sandboxID); err != nil {
		return nil, err
	}
	s, err := m.acquire(ctx, sandboxID, kind)
	if err != nil {
		m.dropOwner(sandboxID)
		return nil, fault.Wrap(err, "acquire", "slot for sandbox "+sandboxID)
	}
	m.hold(s)
	m.wakePool()
	return s, nil
}

func (m *Manager) acquire(ctx context.Context, sandboxID string, kind PortKind) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for {
		s := m.popPool(kind)
		pooled := s != nil
		if !pooled {
			var err error
			if s, err = m.makeNext(ctx, kind); err != nil {
				return nil, err
			}
		}
		s.sandboxID = sandboxID
		err := m.host.setOwner(s.number, sandboxID)
		if err == nil {
			return s, nil
		}
		// Somebody broke it while it waited.
		m.discard(s)
		if !pooled {
			return nil, err
		}
	}
}

// Adopt takes over slot n, which an earlier agent gave to the sandbox. Traffic is not
// touched; DNS is served again. A slot that is gone, or was made for another sandbox since,
// is fault.NotFound; one that another sandbox holds is fault.AlreadyExists.
func (m *Manager) Adopt(ctx context.Context, n int, sandboxID string) (*Slot, error) {
	leave, err := m.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	if s := m.holds(n, sandboxID); s != nil {
		return s, nil
	}
	object := fmt.Sprintf("slot %d for sandbox %s", n, sandboxID)
	if err := m.claimNumber(n, object); err != nil {
		return nil, err
	}
	if err := m.claimOwner(sandboxID); err != nil {
		m.freeNumber(n, false)
		return nil, err
	}
	s, err := m.adopt(ctx, n, sandboxID)
	if err != nil {
		m.dropOwner(sandboxID)
		m.freeNumber(n, false)
		return nil, fault.Wrap(err, "adopt", object)
	}
	m.hold(s)
	return s, nil
}

func (m *Manager) adopt(ctx context.Context, n int, sandboxID string) (*Slot, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	owner, err := m.host.owner(n)
	switch {
	case isNoLink(err):
		return nil, gone(m.host.link(n) + " does not exist")
	case err != nil:
		return nil, err
	case owner != sandboxID:
		return nil, gone(fmt.Sprintf("it was given to %q since", owner))
	}
	s, err := m.open(ctx, n)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, errNotNamespace), errors.Is(err, errNoPort):
		return nil, gone(err.Error())
	case errors.Is(err, unix.EADDRINUSE):
		return nil, &fault.Error{Kind: fault.FailedPrecondition, Err: err, Hint: "another agent serves this slot: stop it first"}
	case err != nil:
		return nil, err
	}
	s.sandboxID = sandboxID
	return s, nil
}

func gone(cause string) error { return fault.New(fault.NotFound, "", "", cause) }

// Release takes a slot down for good. Idempotent, and not stopped by ctx: a failed release
// keeps the number and may be repeated.
func (m *Manager) Release(_ context.Context, s *Slot) error {
	if s == nil {
		return nil
	}
	leave, err := m.enter()
	if err != nil {
		return err
	}
	defer leave()
	if s.m != m {
		return fault.New(fault.Invalid, "release", s.object(), "it belongs to another manager")
	}
	if err := s.remove(); err != nil {
		return fault.Wrap(err, "release", s.object())
	}
	m.forget(s)
	m.wakePool()
	return nil
}

// discard removes a slot that was never handed out.
func (m *Manager) discard(s *Slot) {
	err := s.remove()
	if err != nil {
		m.log.Error("remove broken slot", "slot", s.number, "error", err)
		return // its number stays busy
	}
	m.freeNumber(s.number, false)
}

func (m *Manager) claimOwner(sandboxID string) error {
	if !sandboxIDs.MatchString(sandboxID) {
		return fault.New(fault.Invalid, "check", fmt.Sprintf("sandbox id %q", sandboxID), "must match "+sandboxIDs.String())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n, has := m.owners[sandboxID]; has {
		return fault.New(fault.AlreadyExists, "assign", "slot to sandbox "+sandboxID, fmt.Sprintf("it has slot %d", n))
	}
	m.owners[sandboxID] = 0
	return nil
}

func (m *Manager) dropOwner(sandboxID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.owners, sandboxID)
}

func (m *Manager) claimNumber(n int, object string) error {
	if n < 1 || n > capacity(m.subnet) {
		return fault.New(fault.Invalid, "adopt", object, fmt.Sprintf("slots are 1 to %d", capacity(m.subnet)))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.held[n]; s != nil {
		return fault.New(fault.AlreadyExists, "adopt", object, "sandbox "+s.sandboxID+" holds it")
	}
	if m.busy[n] {
		return fault.New(fault.NotFound, "adopt", object, "the number was used again")
	}
	m.busy[n] = true
	return nil
}

func (m *Manager) holds(n int, sandboxID string) *Slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.held[n]; s != nil && s.sandboxID == sandboxID {
		return s
	}
	return nil
}

func (m *Manager) hold(s *Slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held[s.number] = s
	m.owners[s.sandboxID] = s.number
}

// forget frees a removed slot's number, once: by a second Release it may have a new holder.
func (m *Manager) forget(s *Slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[s.number] != s {
		return
	}
	delete(m.held, s.number)
	delete(m.owners, s.sandboxID)
	delete(m.busy, s.number)
}
