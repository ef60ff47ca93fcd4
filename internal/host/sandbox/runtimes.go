package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

// choose finds the runtime that a create asks for: the best, or the named one.
func (m *Manager) choose(name string) (runtime.Runtime, error) {
	if name == "" && len(m.cfg.Runtimes) > 0 {
		return m.cfg.Runtimes[0], nil
	}
	if rt := m.present(name); rt != nil {
		return rt, nil
	}
	if why := m.cfg.Absent[name]; why != nil {
		return nil, &fault.Error{
			Kind: fault.FailedPrecondition, Op: "create", Object: "sandbox",
			Err:  fmt.Errorf("runtime %s does not work on this host: %s; %s", name, fault.Message(why), m.offer()),
			Hint: fault.HintOf(why),
		}
	}
	return nil, fault.New(fault.Invalid, "create", "sandbox", fmt.Sprintf("runtime is %q: %s", name, m.offer())).
		WithHint("`roost doctor` says what runs sandboxes here")
}

// offer names the runtimes of this host.
func (m *Manager) offer() string {
	if len(m.cfg.Runtimes) == 0 {
		return "this host has none that works"
	}
	names := make([]string, len(m.cfg.Runtimes))
	for i, rt := range m.cfg.Runtimes {
		names[i] = rt.Name()
	}
	return "this host has " + strings.Join(names, ", ")
}

func (m *Manager) present(name string) runtime.Runtime {
	for _, rt := range m.cfg.Runtimes {
		if rt.Name() == name {
			return rt
		}
	}
	return nil
}

// runtimeOf is the runtime that a journal names, or what stands in for one that this host does
// not have (any more).
func (m *Manager) runtimeOf(name string) runtime.Runtime {
	if rt := m.present(name); rt != nil {
		return rt
	}
	a := &absent{name: name, why: "this host does not have it"}
	if why := m.cfg.Absent[name]; why != nil {
		a.why, a.hint = "it does not work on this host: "+fault.Message(why), fault.HintOf(why)
	}
	return a
}

// absent stands in for a runtime that is not there: it ends what runs by its uid, which needs
// no knowledge of what that is, and refuses everything else. The sandbox's files stay.
type absent struct{ name, why, hint string }

var _ runtime.Runtime = (*absent)(nil)

// gone says why a sandbox can do nothing, if its runtime is not there.
func (s *Sandbox) gone() error {
	if a, is := s.rt.(*absent); is {
		return a.err()
	}
	return nil
}

// waits says whether a sandbox may still run, in a runtime that is not there: it is left alone
// until that is back.
func (m *Manager) waits(s *Sandbox) bool {
	if s.gone() == nil {
		return false
	}
	j := s.journal()
	return j.State == Running || j.State == Snapshotting || j.State == Pausing && !m.published(s)
}

func (a *absent) reason() string { return "it runs in " + a.name + ", and " + a.why }

func (a *absent) err() error {
	hint := "its data is kept; get the runtime back and restart roost, or remove the sandbox"
	if a.hint != "" {
		hint += " (" + a.hint + ")"
	}
	return fault.New(fault.FailedPrecondition, "use", "runtime "+a.name, a.why).WithHint(hint)
}

func (a *absent) Name() string                       { return a.name }
func (a *absent) Isolation() runtime.Isolation       { return "" }
func (a *absent) Capabilities() runtime.Capabilities { return runtime.Capabilities{} }
func (a *absent) Identity() map[string]string        { return nil }

func (a *absent) Boot(context.Context, runtime.Spec, runtime.BootOptions) (runtime.Instance, error) {
	return nil, a.err()
}

func (a *absent) Restore(context.Context, runtime.Spec, runtime.Capture) (runtime.Instance, error) {
	return nil, a.err()
}

func (a *absent) Adopt(context.Context, runtime.Spec, json.RawMessage) (runtime.Instance, error) {
	return nil, a.err()
}

func (a *absent) Discard(ctx context.Context, spec runtime.Spec) error {
	return uids.Kill(ctx, spec.UID)
}

func (a *absent) Reap(ctx context.Context, spec runtime.Spec) error { return uids.Kill(ctx, spec.UID) }

func (a *absent) Compact(context.Context, runtime.Spec, runtime.Capture) (json.RawMessage, bool, error) {
	return nil, false, a.err()
}

func (a *absent) ConsoleOf(runtime.Spec) ([]byte, error) { return nil, a.err() }

func (a *absent) Files(runtime.Capture) ([]string, error) { return nil, a.err() }

func (a *absent) Link(context.Context, runtime.Capture, string, string) (json.RawMessage, error) {
	return nil, a.err()
}

func (a *absent) Salvage(context.Context, runtime.Spec, json.RawMessage, string) (json.RawMessage, error) {
	return nil, a.err()
}
