package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func TestBadSpecs(t *testing.T) {
	e := newEnv(t)
	many := map[string]string{}
	for i := range 65 {
		many[fmt.Sprint(i)] = ""
	}
	tests := map[string]struct {
		change func(*sandbox.Spec)
		kind   fault.Kind
		text   string
	}{
		"vcpus negative":     {func(s *sandbox.Spec) { s.VCPUs = -1 }, fault.Invalid, "vcpus is -1: must be 1 to 16"},
		"vcpus 17":           {func(s *sandbox.Spec) { s.VCPUs = 17 }, fault.Invalid, "vcpus is 17"},
		"memory small":       {func(s *sandbox.Spec) { s.MemoryMB = 127 }, fault.Invalid, "memory_mb is 127"},
		"memory large":       {func(s *sandbox.Spec) { s.MemoryMB = 65537 }, fault.Invalid, "memory_mb is 65537"},
		"memory over host":   {func(s *sandbox.Spec) { s.MemoryMB = 4097 }, fault.Invalid, "the host has 4096"},
		"disk negative":      {func(s *sandbox.Spec) { s.DiskSizeMB = -1 }, fault.Invalid, "disk_size_mb is -1"},
		"disk large":         {func(s *sandbox.Spec) { s.DiskSizeMB = 1<<20 + 1 }, fault.Invalid, "disk_size_mb"},
		"disk below base":    {func(s *sandbox.Spec) { s.Template, s.DiskSizeMB = "other", 599 }, fault.Invalid, "needs at least 600"},
		"timeout negative":   {func(s *sandbox.Spec) { s.IdleTimeoutS = ptr(-1) }, fault.Invalid, "idle_timeout_s is -1"},
		"timeout large":      {func(s *sandbox.Spec) { s.IdleTimeoutS = ptr(31 * 86400) }, fault.Invalid, "idle_timeout_s"},
		"template unknown":   {func(s *sandbox.Spec) { s.Template = "nope" }, fault.NotFound, "template nope"},
		"template shape":     {func(s *sandbox.Spec) { s.Template = "../etc" }, fault.Invalid, "template is"},
		"runtime shape":      {func(s *sandbox.Spec) { s.Runtime = "a b" }, fault.Invalid, "runtime is"},
		"env name":           {func(s *sandbox.Spec) { s.Env = map[string]string{"1A": "secret"} }, fault.Invalid, `env is "1A"`},
		"env equals":         {func(s *sandbox.Spec) { s.Env = map[string]string{"A=B": "secret"} }, fault.Invalid, "env"},
		"env zero byte":      {func(s *sandbox.Spec) { s.Env = map[string]string{"A": "secret\x00"} }, fault.Invalid, "zero byte"},
		"env large":          {func(s *sandbox.Spec) { s.Env = map[string]string{"A": strings.Repeat("x", 1<<18)} }, fault.Invalid, "env"},
		"metadata many":      {func(s *sandbox.Spec) { s.Metadata = many }, fault.Invalid, "at most 64"},
		"metadata empty key": {func(s *sandbox.Spec) { s.Metadata = map[string]string{"": "x"} }, fault.Invalid, "metadata"},
		"metadata large":     {func(s *sandbox.Spec) { s.Metadata = map[string]string{"a": strings.Repeat("x", 5000)} }, fault.Invalid, "metadata"},
	}
	for name, tt := range tests {
		s := spec()
		tt.change(&s)
		_, err := e.Create(t.Context(), sandbox.Request{Spec: s})
		require.True(t, fault.Is(err, tt.kind), "%s: %v", name, err)
		require.ErrorContains(t, err, tt.text, name)
		require.NotContains(t, err.Error(), "secret", name)
	}
	_, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: strings.Repeat("k", 129)})
	require.ErrorContains(t, err, "Idempotency-Key")
	_, err = e.Create(t.Context(), sandbox.Request{Spec: sandbox.Spec{Template: "nope", VCPUs: 1, MemoryMB: 128, DiskSizeMB: 9}})
	require.Equal(t, "known templates: base, other", fault.HintOf(err))
	require.Zero(t, e.agent.Calls("CreateSandbox"))
	rows, err := e.store.Sandboxes(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Empty(t, rows, "no side effect")
}

func TestCreatePassesEverythingOn(t *testing.T) {
	e := newEnv(t)
	s := sandbox.Spec{Template: "other", VCPUs: 2, MemoryMB: 1024, DiskSizeMB: 7000, IdleTimeoutS: ptr(0),
		Env: map[string]string{"TOKEN": "v"}, Metadata: map[string]string{"job": "7"}}
	var steps []string
	row, err := e.Create(t.Context(), sandbox.Request{Spec: s, Progress: func(step, _ string) { steps = append(steps, step) }})
	require.NoError(t, err)
	require.Equal(t, []string{"boot"}, steps)
	sb := e.agent.Sandbox(row.ID)
	require.EqualValues(t, 2, sb.Resources.Vcpus)
	require.EqualValues(t, 1024, sb.Resources.MemoryMb)
	require.EqualValues(t, 7000, sb.Resources.DiskSizeMb)
	require.Zero(t, sb.IdleTimeout.AsDuration())
	require.Equal(t, s.Env, e.agent.Envs(row.ID))
	row = e.row(row.ID)
	require.Equal(t, s.Metadata, row.Metadata)
	require.Equal(t, "emulated", row.Isolation)
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	e := newEnv(t)
	e.agent.After(failing("CreateSandbox", connect.NewError(connect.CodeInternal, errors.New("guest never answered"))))
	_, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
	require.ErrorContains(t, err, "guest never answered")
	row := e.only(store.Deleted)
	require.Contains(t, row.Reason, "guest never answered")
	require.Nil(t, e.agent.Sandbox(row.ID))
	e.agent.After(nil)
	again, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
	require.NoError(t, err, "a repeated request tries again")
	require.NotEqual(t, row.ID, again.ID)
}

func TestLostCreateReply(t *testing.T) {
	e := newEnv(t)
	var n atomic.Int64
	e.agent.After(func(_ context.Context, m, _ string) error {
		if m == "CreateSandbox" && n.Add(1) == 1 {
			return connect.NewError(connect.CodeUnavailable, errors.New("connection reset"))
		}
		return nil
	})
	row := e.create()
	require.Equal(t, 1, e.agent.Effects("CreateSandbox"))
	require.Equal(t, store.Running, e.row(row.ID).State)
}

func TestClientGoneMidCreate(t *testing.T) {
	e := newEnv(t)
	g := newGate()
	e.agent.After(g.hook("CreateSandbox")) // the host has it, the reply is not out
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { _, err := e.Create(ctx, sandbox.Request{Spec: spec()}); done <- err }()
	<-g.entered
	leave()
	require.True(t, fault.Is(<-done, fault.Canceled))
	row := e.only(store.Deleted)
	require.Nil(t, e.agent.Sandbox(row.ID), "what the host had made is gone")
	require.Contains(t, row.Reason, "client went away")
}

func TestClientGoneMidCreateWithKey(t *testing.T) {
	e := newEnv(t)
	g := newGate()
	e.agent.After(g.hook("CreateSandbox"))
	ctx, leave := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := e.Create(ctx, sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
		done <- err
	}()
	<-g.entered
	leave()
	close(g.open)
	require.NoError(t, <-done)
	row, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
	require.NoError(t, err)
	require.Equal(t, e.only(store.Running).ID, row.ID)
}

func TestIdempotentCreates(t *testing.T) {
	e := newEnv(t)
	ids := make(chan string, 20)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			row, err := e.Create(context.Background(), sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
			if err != nil {
				t.Error(err)
				return
			}
			if row.State != store.Running {
				t.Errorf("answered before it runs: %s", row.State)
			}
			ids <- row.ID
		})
	}
	wg.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		require.Equal(t, first, id)
	}
	require.Equal(t, 1, e.agent.Calls("CreateSandbox"))
	other, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: "k", Owner: "p"})
	require.NoError(t, err)
	require.NotEqual(t, first, other.ID, "a key is its owner's")
	s := spec()
	s.VCPUs = 2
	_, err = e.Create(t.Context(), sandbox.Request{Spec: s, Key: "k", Owner: "o"})
	require.True(t, fault.Is(err, fault.Invalid), "%v", err)
	e.advance(sandbox.KeepDeleted + time.Second)
	late, err := e.Create(t.Context(), sandbox.Request{Spec: spec(), Key: "k", Owner: "o"})
	require.NoError(t, err)
	require.NotEqual(t, first, late.ID)
}

func TestDeleteWhileCreating(t *testing.T) {
	for name, hook := range map[string]func(*agenttest.Agent, agenttest.Hook){
		// The delete reaches the host before the create has had its effect: the sandbox that
		// comes after it must not stay.
		"before the effect": (*agenttest.Agent).Before,
		"after the effect":  (*agenttest.Agent).After,
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			g := newGate()
			hook(e.agent, g.hook("CreateSandbox"))
			done := make(chan error, 1)
			go func() { _, err := e.Create(context.Background(), sandbox.Request{Spec: spec()}); done <- err }()
			<-g.entered
			id := e.only(store.Creating).ID
			require.NoError(t, e.Delete(t.Context(), id))
			close(g.open)
			require.True(t, fault.Is(<-done, fault.Aborted))
			require.Nil(t, e.agent.Sandbox(id))
			row := e.row(id)
			require.Equal(t, store.Deleted, row.State)
			require.Equal(t, "deleted on request", row.Reason)
		})
	}
}

func TestListPages(t *testing.T) {
	e := newEnv(t)
	var want []string
	for range 5 {
		want = append([]string{e.create().ID}, want...)
		e.advance(time.Millisecond)
	}
	var got []string
	cursor := ""
	for {
		rows, next, err := e.List(t.Context(), "", 2, cursor)
		require.NoError(t, err)
		for _, r := range rows {
			got = append(got, r.ID)
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	require.Equal(t, want, got)
	for _, bad := range []string{"!", "YWJj", "MS4uLi8"} {
		_, _, err := e.List(t.Context(), "", 2, bad)
		require.True(t, fault.Is(err, fault.Invalid), bad)
	}
	_, _, err := e.List(t.Context(), "", 0, "")
	require.True(t, fault.Is(err, fault.Invalid))
}
