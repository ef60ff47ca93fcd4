package uffd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/memory"
)

// What only the one who makes a userfaultfd needs.
const (
	ioctlNew       = 0xAA00
	ioctlAPI       = 0xC018AA3F
	ioctlRegister  = 0xC020AA00
	featureRemove  = 1 << 3
	registerMissed = 1 << 0
)

// player is this test binary in the part of a VMM: memory as Firecracker makes it, and a guest
// that knows what it should read.
type player struct {
	mem, want []byte
	uffd      int
	touched   []pageState // of each page
	scratch   int         // a memfd, to let the kernel read guest memory
	wrong     atomic.Int64
	ops       atomic.Int64
	halt      atomic.Bool
	busy      sync.WaitGroup
}

// pageState: what the page was last made.
type pageState struct {
	written bool
	zeroed  bool
	seed    uint64
}

// playVMM: ARGS are the socket, the file of the expected memory, the uid, and where the first of
// two regions ends, in pages.
func playVMM(args []string) {
	debug.SetGCPercent(-1) // a collection would wait for who waits for a page
	runtime.GOMAXPROCS(16)
	var uid, split int
	_, err := fmt.Sscan(args[2]+" "+args[3], &uid, &split)
	check(err)
	f, err := os.Open(args[1])
	check(err)
	st, err := f.Stat()
	check(err)
	p := &player{touched: make([]pageState, st.Size()/memory.PageSize)}
	p.want, err = unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	check(err)
	p.mem, err = unix.Mmap(-1, 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	check(err)
	p.scratch, err = unix.MemfdCreate("scratch", 0)
	check(err)
	p.makeUserfault()
	check(syscall.Setresgid(uid, uid, uid))
	check(syscall.Setresuid(uid, uid, uid))
	if args[0] != "" {
		p.connect(args[0], split)
	}
	fmt.Println("ready")
	lines := make(chan string)
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
		os.Exit(0) // whatever hangs: the test is gone
	}()
	for line := range lines {
		fmt.Println(p.do(line))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmm:", err)
		os.Exit(3)
	}
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		check(fmt.Errorf("ioctl %#x: %w", request, errno))
	}
}

func newUserfault() int {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		check(errno)
	}
	api := [3]uint64{0xAA, featureRemove}
	ioctl(int(fd), ioctlAPI, unsafe.Pointer(&api))
	return int(fd)
}

func register(fd int, mem []byte) {
	arg := [4]uint64{addrOf(mem), uint64(len(mem)), registerMissed}
	ioctl(fd, ioctlRegister, unsafe.Pointer(&arg))
}

func addrOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

func (p *player) makeUserfault() {
	p.uffd = newUserfault()
	register(p.uffd, p.mem)
}

// handshake is what Firecracker sends, with the unit of its second page size.
func (p *player) handshake(split int) []byte {
	at := split * memory.PageSize
	list := []map[string]any{
		{"base_host_virt_addr": addrOf(p.mem), "size": at, "offset": 0, "page_size": 4096, "page_size_kib": 4096},
		{"base_host_virt_addr": addrOf(p.mem) + uint64(at), "size": len(p.mem) - at, "offset": at, "page_size": 4096, "page_size_kib": 4096},
	}
	b, err := json.Marshal(list)
	check(err)
	return b
}

func (p *player) connect(socket string, split int) {
	conn, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	check(unix.Connect(conn, &unix.SockaddrUnix{Name: socket}))
	b := p.handshake(split)
	// In two pieces; the connection stays open, as Firecracker's does.
	check(unix.Sendmsg(conn, b[:7], unix.UnixRights(p.uffd), nil, 0))
	check(unix.Sendmsg(conn, b[7:], nil, nil, 0))
}

func (p *player) do(line string) string {
	var cmd string
	var a, b, threads int
	_, _ = fmt.Sscan(line, &cmd, &a, &b, &threads)
	switch cmd {
	case "read": // pages a to b, in order, from threads
		p.each(threads, func(t int) {
			for n := a + t; n < b; n += threads {
				p.read(n, n%7 == 0)
			}
		})
	case "random": // all pages from a to b in another order
		order := rand.New(rand.NewPCG(1, 2)).Perm(b - a)
		p.each(threads, func(t int) {
			for i := t; i < len(order); i += threads {
				p.read(a+order[i], false)
			}
		})
	case "timed": // pages a to b in another order, by one thread that does nothing else
		order := rand.New(rand.NewPCG(1, 2)).Perm(b - a)
		start, sum := time.Now(), byte(0)
		for _, n := range order {
			sum += p.mem[(a+n)*memory.PageSize]
		}
		p.ops.Add(int64(sum) & 1)
		return fmt.Sprint(time.Since(start).Nanoseconds())
	case "remove":
		check(unix.Madvise(p.mem[a*memory.PageSize:b*memory.PageSize], unix.MADV_DONTNEED))
		for n := a; n < b; n++ {
			p.touched[n] = pageState{zeroed: true}
		}
	case "work": // from threads until "halt"; a is the seed
		p.halt.Store(false)
		for t := range threads {
			p.busy.Add(1)
			go p.work(t, threads, uint64(a))
		}
	case "halt":
		p.halt.Store(true)
		p.busy.Wait()
	case "ops":
		return fmt.Sprint(p.ops.Load())
	}
	return fmt.Sprintf("wrong %d", p.wrong.Load())
}

func (p *player) each(threads int, do func(t int)) {
	var wg sync.WaitGroup
	for t := range threads {
		wg.Go(func() { do(t) })
	}
	wg.Wait()
}

func (p *player) page(n int) []byte { return p.mem[n*memory.PageSize : (n+1)*memory.PageSize] }

// read looks at a page, as the guest or as a device in the VMM does.
func (p *player) read(n int, asKernel bool) {
	got := p.page(n)
	if asKernel {
		buf := make([]byte, memory.PageSize)
		_, err := unix.Pwrite(p.scratch, got, int64(n)*memory.PageSize)
		check(err)
		_, err = unix.Pread(p.scratch, buf, int64(n)*memory.PageSize)
		check(err)
		got = buf
	}
	if !bytes.Equal(got, p.expected(n)) {
		p.wrong.Add(1)
		fmt.Fprintf(os.Stderr, "page %d is wrong: %x…, %+v\n", n, got[:16], p.touched[n])
	}
	p.ops.Add(1)
}

func (p *player) expected(n int) []byte {
	switch s := p.touched[n]; {
	case s.written:
		buf := make([]byte, memory.PageSize)
		fillPage(buf, s.seed)
		return buf
	case s.zeroed:
		return make([]byte, memory.PageSize)
	default:
		return p.want[n*memory.PageSize : (n+1)*memory.PageSize]
	}
}

func fillPage(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 7)
	for i := 0; i < len(b); i += 8 {
		le.PutUint64(b[i:], r.Uint64()|1)
	}
}

// work does at random what guests do, each thread with pages of its own.
func (p *player) work(t, threads int, seed uint64) {
	defer p.busy.Done()
	r := rand.New(rand.NewPCG(seed, uint64(t)))
	for !p.halt.Load() {
		n := r.IntN(len(p.touched)/threads)*threads + t
		switch k := r.IntN(16); {
		case k < 9:
			p.read(n, k == 0)
		case k < 12:
			p.read(n, false)
			p.write(n, r.Uint64())
		default: // what is not there is asked for again
			check(unix.Madvise(p.page(n), unix.MADV_DONTNEED))
			p.touched[n] = pageState{zeroed: true}
		}
		if r.IntN(64) == 0 {
			time.Sleep(time.Millisecond) // a guest waits now and then: all pages are not touched at once
		}
	}
}

func (p *player) write(n int, seed uint64) {
	fillPage(p.page(n), seed)
	p.touched[n] = pageState{written: true, seed: seed}
}
