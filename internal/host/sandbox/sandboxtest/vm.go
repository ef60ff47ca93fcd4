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
	uid   int
	live  string
	guest *guest
	ns    *namespace
	wire  *wire

	once   sync.Once
	exited chan struct{}
	exit   runtime.Exit
	wg     sync.WaitGroup
}

// wire joins the slot's tap to the guest's card. While it is cut nothing passes.
type wire struct {
	slot, card *os.File

	mu   sync.Mutex
	cut  bool
	cond *sync.Cond
	end  bool
}

func startVM(rt *Runtime, spec runtime.Spec, live string, mem Memory) (_ *vm, err error) {
	v := &vm{uid: spec.UID, live: live, guest: &guest{rt: rt, mem: mem}, exited: make(chan struct{})}
	if v.ns, err = newNamespace(); err != nil {
		return nil, err
	}
	w := &wire{cut: true}
	w.cond = sync.NewCond(&w.mu)
	if w.card, err = v.ns.nic(); err != nil {
		return nil, errors.Join(err, v.ns.close())
	}
	fd, err := unix.FcntlInt(spec.Port.Tap.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, w.card.Close(), v.ns.close())
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	w.slot = os.NewFile(uintptr(fd), "slot")
	l, err := v.ns.listen()
	if err != nil {
		return nil, errors.Join(err, w.card.Close(), w.slot.Close(), v.ns.close())
	}
	v.guest.serve(l)
	v.wire = w
	v.wg.Go(func() { w.carry(w.slot, w.card) })
	v.wg.Go(func() { w.carry(w.card, w.slot) })
	return v, nil
}

func (w *wire) carry(from, to *os.File) {
	frame := make([]byte, 65536+64)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		w.mu.Lock()
		for w.cut && !w.end {
			w.cond.Wait()
		}
		end := w.end
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

// kill ends the VM as SIGKILL ends a VMM: the wire is dead before anything can be said on it.
func (v *vm) kill(reason string, requested bool) {
	v.once.Do(func() {
		v.wire.mu.Lock()
		v.wire.end = true
		v.wire.cond.Broadcast()
		v.wire.mu.Unlock()
		_ = v.wire.slot.Close()
		_ = v.wire.card.Close()
		v.wg.Wait()
		_ = v.guest.server.Close()
		_ = v.ns.close()
		v.exit = runtime.Exit{Reason: reason, Requested: requested, At: time.Now()}
		close(v.exited)
	})
	<-v.exited
}
