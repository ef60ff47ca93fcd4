package sandboxtest

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/runtime"
)

// vm is one VM: it lives until it is killed, whoever holds it.
type vm struct {
	uid    int
	live   string
	build  string
	diskMB int
	guest  *guest
	ns     *namespace
	wire   line

	mu   sync.Mutex
	halt string

	once   sync.Once
	exited chan struct{}
	exit   runtime.Exit
}

// line is what a VM hangs on. Once it has ended nothing passes, no goodbye either.
type line interface {
	set(cut bool)
	end()
}

// wire joins the slot's tap to the guest's card. While it is cut nothing passes.
type wire struct {
	slot, card *os.File

	mu   sync.Mutex
	cut  bool
	cond *sync.Cond
	over bool
	wg   sync.WaitGroup
}

func startVM(rt *Runtime, spec runtime.Spec, live string, mem Memory) (*vm, error) {
	v := &vm{
		uid: spec.UID, live: live, diskMB: spec.Resources.DiskSizeMB,
		guest: &guest{rt: rt, mem: mem}, exited: make(chan struct{}),
	}
	if rt.kind.Caps.TakesNamespace {
		return v, v.moveIn(spec.Port)
	}
	return v, v.plugIn(spec.Port)
}

// moveIn makes the VM live in its port's namespace.
func (v *vm) moveIn(port runtime.Port) (err error) {
	if port.Tap != nil {
		return errors.New("it was given a tap")
	}
	if v.ns, err = openNamespace(port.Namespace); err != nil {
		return err
	}
	l, err := v.ns.listen()
	if err != nil {
		return errors.Join(err, v.ns.close())
	}
	v.wire = &veth{ns: v.ns}
	v.guest.serve(l)
	return nil
}

// plugIn gives the VM a namespace with a card that hangs on its port's tap.
func (v *vm) plugIn(port runtime.Port) (err error) {
	if port.Namespace != "" || port.Tap == nil {
		return errors.New("it was not given a tap alone")
	}
	if v.ns, err = newNamespace(); err != nil {
		return err
	}
	w := &wire{cut: true}
	w.cond = sync.NewCond(&w.mu)
	if w.card, err = v.ns.nic(); err != nil {
		return errors.Join(err, v.ns.close())
	}
	fd, err := unix.FcntlInt(port.Tap.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return errors.Join(err, w.card.Close(), v.ns.close())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	w.slot = os.NewFile(uintptr(fd), "slot")
	l, err := v.ns.listen()
	if err != nil {
		return errors.Join(err, w.card.Close(), w.slot.Close(), v.ns.close())
	}
	v.guest.serve(l)
	v.wire = w
	w.wg.Go(func() { w.carry(w.slot, w.card) })
	w.wg.Go(func() { w.carry(w.card, w.slot) })
	return nil
}

func (w *wire) carry(from, to *os.File) {
	frame := make([]byte, 65536+64)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		w.mu.Lock()
		for w.cut && !w.over {
			w.cond.Wait()
		}
		end := w.over
		w.mu.Unlock()
		if end {
			return
		}
		_, _ = to.Write(frame[:n]) // a frame may be lost
	}
}

func (w *wire) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	w.cond.Broadcast()
}

func (w *wire) end() {
	w.mu.Lock()
	w.over = true
	w.cond.Broadcast()
	w.mu.Unlock()
	_ = w.slot.Close()
	_ = w.card.Close()
	w.wg.Wait()
}

// veth is the end that a slot with a namespace offers: it is cut by taking it down.
type veth struct{ ns *namespace }

func (l *veth) set(cut bool) { _ = l.ns.up(!cut) }
func (l *veth) end()         { l.set(true) }

func (v *vm) stopped() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.halt
}

// kill ends the VM as SIGKILL ends a VMM: the wire is dead before anything can be said on it.
func (v *vm) kill(reason string, requested bool) {
	v.once.Do(func() {
		v.wire.end()
		_ = v.guest.server.Close()
		_ = v.ns.close()
		v.exit = runtime.Exit{Reason: reason, Requested: requested, At: time.Now()}
		close(v.exited)
	})
	<-v.exited
}
