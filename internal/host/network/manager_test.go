package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
)

func TestAcquireReleaseLeavesNothing(t *testing.T) {
	t.Parallel()
	forEachPort(t, testAcquireReleaseLeavesNothing)
}

func testAcquireReleaseLeavesNothing(t *testing.T, kind PortKind) {
	w := newWorld(t)
	before := w.census()
	opt := w.options()
	opt.PoolSize, opt.PoolPort = 2, kind
	m, err := New(opt)
	require.NoError(t, err)
	require.NoError(t, m.Start(t.Context()))
	require.NoError(t, m.Start(t.Context()), "safe twice")
	var mu sync.Mutex
	inUse, most := map[int]string{}, 0
	var group errgroup.Group
	for i := range 20 {
		group.Go(func() error {
			id, kind := fmt.Sprintf("sb%d", i), kind
			if i%4 == 3 { // not what the pool has
				kind = map[PortKind]PortKind{Tap: Veth, Veth: Tap}[kind]
			}
			for range 3 {
				s, err := m.Acquire(t.Context(), id, kind)
				if err != nil {
					return err
				}
				mu.Lock()
				if other, twice := inUse[s.Index()]; twice {
					err = fmt.Errorf("slot %d given to %s and %s", s.Index(), other, id)
				}
				inUse[s.Index()] = id
				most = max(most, s.Index())
				mu.Unlock()
				if err != nil {
					return err
				}
				mu.Lock()
				delete(inUse, s.Index())
				mu.Unlock()
				if err := m.Release(t.Context(), s); err != nil {
					return err
				}
				if err := m.Release(t.Context(), s); err != nil {
					return fmt.Errorf("second release: %w", err)
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	require.LessOrEqual(t, most, 20+2+1, "lowest free numbers are used")
	m.Stop()
	m.Stop()
	require.Empty(t, namespacesOf(opt.Installation))
	require.NoError(t, m.Uninstall(t.Context()))
	require.NoError(t, m.Uninstall(t.Context()), "idempotent")
	require.Equal(t, before, w.census())
	_, err = os.Stat(opt.StateDir + "/" + stateName)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = m.Acquire(t.Context(), "late", kind)
	require.True(t, fault.Is(err, fault.Unavailable), err)
}

func TestReleasedSlotRefusesUse(t *testing.T) {
	t.Parallel()
	forEachPort(t, testReleasedSlotRefusesUse)
}

func testReleasedSlotRefusesUse(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", kind)
	_, err := m.Acquire(t.Context(), "sb1", kind)
	require.True(t, fault.Is(err, fault.AlreadyExists), err)
	require.NoError(t, m.Release(t.Context(), s))
	next := acquire(t, m, "sb2", kind)
	require.Equal(t, s.Index(), next.Index())
	require.NoError(t, m.Release(t.Context(), s), "a second release does not touch the number's next holder")
	require.NoError(t, next.SetPolicy(t.Context(), Policy{}))
	_, err = s.Tap()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	_, err = s.Dial(t.Context(), 80)
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	_, err = s.Stats()
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	require.True(t, fault.Is(s.SetPolicy(t.Context(), Policy{}), fault.FailedPrecondition))
	require.NoError(t, m.Release(t.Context(), nil))
}

func TestTapAndDial(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.manager(w.options())
	s := acquire(t, m, "sb1", Tap)
	tap, err := s.Tap()
	require.NoError(t, err)
	_, err = s.Tap()
	require.True(t, fault.Is(err, fault.FailedPrecondition), "one at a time: %v", err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = s.Dial(ctx, 80)
	require.True(t, fault.Is(err, fault.DeadlineExceeded), "nobody is behind the tap: %v", err)
	require.NoError(t, tap.Close())
	g := w.guest(s)
	_, err = s.Dial(t.Context(), 81)
	require.True(t, fault.Is(err, fault.Unavailable), "refused: %v", err)
	_, err = s.Dial(t.Context(), 70000)
	require.True(t, fault.Is(err, fault.Invalid), err)
	serveTCP(t, g.ns, webPort)
	c, err := s.Dial(t.Context(), webPort)
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	require.IsType(t, &net.TCPConn{}, c)
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	require.NoError(t, err)
	require.Contains(t, string(buf[:n]), GuestAddr.String()+":8080 "+GatewayAddr.String())
}

func TestExhaustedRange(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	opt.Subnet = "10.250.0.0/30" // two slots
	m := w.manager(opt)
	first := acquire(t, m, "sb1", Tap)
	acquire(t, m, "sb2", Tap)
	_, err := m.Acquire(t.Context(), "sb3", Tap)
	require.True(t, fault.Is(err, fault.ResourceExhausted), err)
	require.NotEmpty(t, fault.HintOf(err))
	require.NoError(t, m.Release(t.Context(), first))
	acquire(t, m, "sb3", Tap)
}

func TestCanceledAcquireLeavesNothing(t *testing.T) {
	t.Parallel()
	forEachPort(t, testCanceledAcquireLeavesNothing)
}

func testCanceledAcquireLeavesNothing(t *testing.T, kind PortKind) {
	w := newWorld(t)
	opt := w.options()
	m := w.manager(opt)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := m.Acquire(ctx, "sb1", kind)
	require.True(t, fault.Is(err, fault.Canceled), err)
	_, err = m.make(ctx, 7, kind) // canceled when it is whole
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, namespacesOf(opt.Installation))
	acquire(t, m, "sb1", kind)
}

// TestRestartAdopts: the agent goes and another takes over while a guest talks.
func TestRestartAdopts(t *testing.T) {
	t.Parallel()
	forEachPort(t, testRestartAdopts)
}

func testRestartAdopts(t *testing.T, kind PortKind) {
	w := newWorld(t)
	opt := w.options()
	opt.PoolSize, opt.PoolPort = 2, kind
	first, err := New(opt)
	require.NoError(t, err)
	require.NoError(t, first.Start(t.Context()))
	s, idle := acquire(t, first, "sb1", kind), acquire(t, first, "sb2", kind)
	g := w.guest(s)
	w.zone.add(t, "site.test. 60 IN A "+siteA)
	talk := startTalking(t, g.ns)
	first.Stop()
	require.Len(t, slotsOf(opt.Installation), 2, "the pool is gone, the held slots stay")
	_, err = g.ask("udp", "site.test.", 1)
	require.Error(t, err, "no agent, no DNS")

	second := w.manager(opt)
	rival, err := openNamespace(names(opt.Installation).namespacePath(idle.Index()))
	require.NoError(t, err)
	defer func() { _ = rival.close() }()
	old, err := second.serveDNS(t.Context(), idle.Index(), rival) // an agent that still serves
	require.NoError(t, err)
	_, err = second.Adopt(t.Context(), idle.Index(), "sb2")
	require.True(t, fault.Is(err, fault.FailedPrecondition), err)
	old.stop()
	require.Equal(t, first.Subnet(), second.Subnet())
	fresh := acquire(t, second, "sb3", kind)
	require.NotContains(t, []int{s.Index(), idle.Index()}, fresh.Index(), "slots of the first agent are not given away")
	adopted, err := second.Adopt(t.Context(), s.Index(), "sb1")
	require.NoError(t, err)
	again, err := second.Adopt(t.Context(), s.Index(), "sb1")
	require.NoError(t, err)
	require.Same(t, adopted, again)
	a, err := g.ask("udp", "site.test.", 1)
	require.NoError(t, err)
	require.Len(t, a.Answer, 1)
	talk.requireUnbroken(t)
	serveTCP(t, g.ns, webPort)
	c, err := adopted.Dial(t.Context(), webPort)
	require.NoError(t, err)
	require.NoError(t, c.Close())

	for _, c := range []struct {
		n    int
		id   string
		kind fault.Kind
	}{
		{s.Index(), "sb9", fault.AlreadyExists},
		{idle.Index(), "sb9", fault.NotFound}, // it is sb2's
		{idle.Index(), "sb1", fault.AlreadyExists},
		{4000, "sb9", fault.NotFound},
		{0, "sb9", fault.Invalid},
		{MaxSlots + 1, "sb9", fault.Invalid},
	} {
		_, err := second.Adopt(t.Context(), c.n, c.id)
		require.True(t, fault.Is(err, c.kind), "%d for %s: %v", c.n, c.id, err)
	}
	require.NoError(t, second.Collect(t.Context(), map[int]string{}))
	_, err = second.Adopt(t.Context(), idle.Index(), "sb2")
	require.True(t, fault.Is(err, fault.NotFound), "collected: %v", err)
	talk.requireUnbroken(t)
}

// talker keeps a TCP stream busy.
type talker struct {
	rounds chan error
	stop   chan struct{}
}

func startTalking(t *testing.T, ns *namespace) *talker {
	t.Helper()
	f := stream(t, ns, siteA)
	talk := &talker{rounds: make(chan error), stop: make(chan struct{})}
	var done sync.WaitGroup
	done.Go(func() {
		for {
			err := f.echo(10 * time.Second)
			select {
			case talk.rounds <- err:
			case <-talk.stop:
				return
			case <-time.After(time.Millisecond): // nobody looks: go on talking
				if err != nil {
					return
				}
			}
		}
	})
	t.Cleanup(func() { close(talk.stop); _ = f.Close(); done.Wait() })
	talk.requireUnbroken(t)
	return talk
}

func (k *talker) requireUnbroken(t *testing.T) {
	t.Helper()
	for range 3 {
		select {
		case err := <-k.rounds:
			require.NoError(t, err)
		case <-time.After(15 * time.Second):
			t.Fatal("the stream stands still")
		}
	}
}

// TestTwoInstallations: one collects as hard as it can, and goes; the other is untouched.
func TestTwoInstallations(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	optA, optB := w.options(), w.options()
	optB.Installation = optA.Installation[:3] + string("h1"[rand.IntN(2)]) // ids as alike as can be
	if optB.Installation == optA.Installation {
		optB.Installation = optA.Installation[:3] + "z"
	}
	a, b := w.manager(optA), w.manager(optB)
	var last *Slot
	for i := range 11 {
		last = acquire(t, b, fmt.Sprintf("b%d", i), Tap)
	}
	require.Equal(t, 11, last.Index())
	require.False(t, a.Subnet().Overlaps(b.Subnet()))
	g := w.guest(last)
	talk := startTalking(t, g.ns)
	one := acquire(t, a, "a1", Tap)
	ga := w.guest(one)
	_, end := uplink(b.Subnet(), last.Index())
	_, err := dialDenied(ga.ns, end.Addr().String(), webPort)
	require.Error(t, err, "a guest of one does not reach a slot of the other")
	require.NoError(t, a.Release(t.Context(), one))
	strays, _, err := a.Strays(nil)
	require.NoError(t, err)
	require.Empty(t, strays, "another's are not seen")
	for range 20 {
		require.NoError(t, a.Collect(t.Context(), nil))
	}
	require.Len(t, namespacesOf(optB.Installation), 11)
	talk.requireUnbroken(t)
	require.NoError(t, a.Uninstall(t.Context()))
	on, err := b.host.forwarding()
	require.NoError(t, err)
	require.True(t, on, "forwarding stays on for the other")
	talk.requireUnbroken(t)
	b.Stop()
	b2, err := New(optB)
	require.NoError(t, err)
	require.NoError(t, b2.Start(t.Context()))
	// 1 goes, 11 stays: numbers are whole.
	require.NoError(t, b2.Collect(t.Context(), map[int]string{11: "b10"}))
	require.Equal(t, []string{names(optB.Installation).namespace(11)}, namespacesOf(optB.Installation))
	talk.requireUnbroken(t)
	require.NoError(t, b2.Uninstall(t.Context()))
	h, err := openHost(names(optB.Installation), optB.HostNS)
	require.NoError(t, err)
	defer h.close()
	on, err = h.forwarding()
	require.NoError(t, err)
	require.False(t, on, "the last one puts back what the first one found")
}

// TestCollectHalfMade: what an agent leaves that dies in the middle of making a slot.
func TestCollectHalfMade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	m := w.manager(opt)
	n := m.host.names
	require.NoError(t, claimName(n.namespacePath(1))) // a name, no namespace
	require.NoError(t, claimName(n.namespacePath(2)))
	require.NoError(t, doNew(n.namespacePath(2), func() error { return nil })) // an empty namespace
	require.NoError(t, claimName(n.namespacePath(3)))
	hostEnd, slotEnd := uplink(m.Subnet(), 3)
	require.NoError(t, doNew(n.namespacePath(3), func() error { return m.wire(3, hostEnd, slotEnd, nil) })) // no host end
	require.NoError(t, claimName(n.namespacePath(4)))
	require.NoError(t, m.build(4, Tap))              // everything but DNS and an owner
	orphan, err := openNamespace(n.namespacePath(4)) // something keeps it alive …
	require.NoError(t, err)
	require.NoError(t, unmountNamespace(n.namespacePath(4))) // … and its name is gone
	require.NoError(t, claimName(n.portPath(5)))             // the names of a veth slot, no namespaces
	require.NoError(t, claimName(n.namespacePath(5)))
	require.NoError(t, claimName(n.portPath(6)))
	require.NoError(t, doNew(n.portPath(6), func() error { return nil })) // the other namespace alone
	for i := 7; i <= 8; i++ {
		require.NoError(t, claimName(n.namespacePath(i)))
		require.NoError(t, claimName(n.portPath(i)))
		require.NoError(t, m.build(i, Veth))
	}
	require.NoError(t, unmountNamespace(n.namespacePath(7))) // half gone
	require.NoError(t, unmountNamespace(n.portPath(8)))
	_, err = os.Create(nsDir + "/" + n.namespacePrefix() + "05") // not a number of ours
	require.NoError(t, err)
	defer func() { _ = os.Remove(nsDir + "/" + n.namespacePrefix() + "05") }()
	for i := 1; i <= 8; i++ {
		_, err := m.Adopt(t.Context(), i, "sb1")
		require.True(t, fault.Is(err, fault.NotFound), "%d: %v", i, err)
	}
	s := acquire(t, m, "sb1", Tap)
	require.Equal(t, 9, s.Index(), "no number is used on which something stands")
	strays, missing, err := m.Strays(map[int]string{3: "sb3", 10: "sb10"})
	require.NoError(t, err)
	require.Equal(t, []int{10}, missing)
	var found []int
	for _, stray := range strays {
		found = append(found, stray.Slot)
		require.NotEmpty(t, stray.Names)
	}
	require.Equal(t, []int{1, 2, 4, 5, 6, 7, 8}, found, "but not what is kept or held")
	require.Equal(t, Stray{Slot: 5, Names: []string{n.namespace(5), n.portNamespace(5)}}, strays[3])
	require.Equal(t, Stray{Slot: 4, Names: []string{n.namespace(4), n.link(4)}}, Stray{4, append([]string{n.namespace(4)}, strays[2].Names...)}, "a link whose namespace has lost its name")
	require.NoError(t, m.Collect(t.Context(), nil))
	strays, _, err = m.Strays(nil)
	require.NoError(t, err)
	require.Empty(t, strays)
	require.NoError(t, orphan.close())
	require.Equal(t, []string{n.namespace(9)}, namespacesOf(opt.Installation))
	_, err = os.Stat(nsDir + "/" + n.namespacePrefix() + "05")
	require.NoError(t, err)
	present, err := m.host.present()
	require.NoError(t, err)
	require.Equal(t, map[int]bool{9: true}, present)
	require.Equal(t, 1, acquire(t, m, "sb2", Tap).Index())
}

// TestTakenLinkIsLeftAlone: a link of ours without a name is skipped, not destroyed: it may
// be a running sandbox's.
func TestTakenLinkIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	m := w.manager(opt)
	s := acquire(t, m, "sb1", Tap)
	g := w.guest(s)
	talk := startTalking(t, g.ns)
	m.Stop()
	require.NoError(t, unmountNamespace(names(opt.Installation).namespacePath(s.Index())))
	m2 := w.manager(opt)
	require.Equal(t, s.Index()+1, acquire(t, m2, "sb2", Tap).Index())
	require.Len(t, namespacesOf(opt.Installation), 1)
	talk.requireUnbroken(t)
}

func TestBrokenPoolSlotIsReplaced(t *testing.T) {
	t.Parallel()
	forEachPort(t, testBrokenPoolSlotIsReplaced)
}

func testBrokenPoolSlotIsReplaced(t *testing.T, kind PortKind) {
	w := newWorld(t)
	m := pooled(t, w, 1, kind)
	m.mu.Lock()
	victim := m.pool[0].number
	m.mu.Unlock()
	link, err := m.host.nl.LinkByName(m.host.link(victim))
	require.NoError(t, err)
	require.NoError(t, m.host.nl.LinkDel(link))
	s := acquire(t, m, "sb1", kind)
	g := w.guest(s)
	_, err = dial(g.ns, siteA, webPort)
	require.NoError(t, err)
}

func TestSubnetIsKeptAndFree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	opt := w.options()
	probe, err := New(opt)
	require.NoError(t, err)
	favourite := probe.candidates()[0]
	inside := fromUint(toUint(favourite.Addr()) + 300)
	in(t, w.host, func() error { return giveAddrs("lan0", inside.String()+"/24") })
	m := w.manager(opt)
	require.False(t, m.Subnet().Contains(inside), "a subnet that the host uses is not chosen")
	require.Equal(t, probe.candidates()[1], m.Subnet())
	s := acquire(t, m, "sb1", Tap)
	require.True(t, m.Subnet().Contains(fromUint(toUint(m.Subnet().Addr())+uint32(2*s.Index()-1))))
	m.Stop()
	opt.Subnet = "10.250.0.0/24"
	other, err := New(opt)
	require.NoError(t, err)
	err = other.Start(t.Context())
	require.True(t, fault.Is(err, fault.FailedPrecondition), "slots stand on the old one: %v", err)
	require.ErrorContains(t, other.Start(t.Context()), "stopped")
	clash := w.options()
	clash.Subnet = "192.168.77.0/26"
	other, err = New(clash)
	require.NoError(t, err)
	require.True(t, fault.Is(other.Start(t.Context()), fault.AlreadyExists))
}

func TestOptionsNameTheField(t *testing.T) {
	t.Parallel()
	good := Options{Installation: "ab12", StateDir: "/x"}
	require.NoError(t, good.Validate())
	for field, change := range map[string]func(*Options){
		"Installation": func(o *Options) { o.Installation = "AB12" },
		"StateDir":     func(o *Options) { o.StateDir = "" },
		"Subnet":       func(o *Options) { o.Subnet = "10.171.0.0/24" },
		"DeniedCIDRs":  func(o *Options) { o.DeniedCIDRs = []string{"1.2.3.4"} },
		"PoolPort":     func(o *Options) { o.PoolPort = "bridge" },
		"Resolvers":    func(o *Options) { o.Resolvers = []string{"dns.example"} },
	} {
		bad := good
		change(&bad)
		_, err := New(bad)
		require.True(t, fault.Is(err, fault.Invalid), field)
		require.ErrorContains(t, err, field)
	}
}

func TestNamesAreExact(t *testing.T) {
	t.Parallel()
	a := names("ab12")
	for name, want := range map[string]int{
		"roost-ab12-1": 1, "roost-ab12-11": 11, "roost-ab12-4096": 4096, "roost-ab12-4097": 0, "roost-ab12-0": 0,
		"roost-ab12-01": 0, "roost-ab12-+1": 0, "roost-ab12-": 0, "roost-ab12-1x": 0, "roost-ab1-21": 0, "roost-ab123-1": 0,
		"roost-ab12-7p": 7, "roost-ab12-7pp": 0, "roost-ab12-p": 0, "roost-ab12-p7": 0,
		"xroost-ab12-1": 0, "roost-ab1h-1": 0,
	} {
		n, ok := a.parseNamespace(name)
		require.Equal(t, want, n, name)
		require.Equal(t, want != 0, ok, name)
	}
	for name, want := range map[string]int{"rab12h1": 1, "rab12h11": 11, "rab1h21": 0, "rab12h": 0, "rab12h1h1": 0} {
		n, _ := a.parseLink(name)
		require.Equal(t, want, n, name)
	}
	require.LessOrEqual(t, len(a.link(MaxSlots)), 15)
}

func TestSpansMerge(t *testing.T) {
	t.Parallel()
	require.Equal(t, []span{{0x0a000000, 0x0affffff}, {0xe0000000, 0xffffffff}},
		spans(prefixes("240.0.0.0/4", "10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16", "224.0.0.0/4")))
	require.Equal(t, []span{{0, 0xffffffff}}, spans(prefixes("0.0.0.0/0", "1.2.3.4/32")))
}
