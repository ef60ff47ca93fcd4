package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/bench/harness"
)

// bare restores the template as a script would that knows QEMU and nothing of Roost: an overlay
// by qemu-img, QEMU with the very flags of a Roost VM, its saved state, then the guest's own
// ready signal. It has a tap of its own, made once.
type bare struct {
	dir   string
	args  []string // with {MEM}, {TAP}, {TOP} for what differs
	layer string
	base  string
	state *os.File
	mem   *os.File
	token string
	ns    netns.NsHandle
	n     int
}

// newBare takes flags and files from a sandbox that Roost has just restored.
func (s *server) newBare(ctx context.Context) (_ *bare, err error) {
	id, err := s.create(ctx, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.delete(ctx, id)) }()
	pid, err := s.pid(id)
	if err != nil {
		return nil, err
	}
	b := &bare{}
	if b.dir, err = os.MkdirTemp("", "roost-bare-"); err != nil {
		return nil, err
	}
	if err := b.copyFlags(pid); err != nil {
		return nil, err
	}
	if err := b.findTemplate(s); err != nil {
		return nil, err
	}
	return b, b.makeTap()
}

var fdset = regexp.MustCompile(`/dev/fdset/([0-9]+)`)

// copyFlags takes a VM's command line and puts paths where Roost passes descriptors.
func (b *bare) copyFlags(pid int) error {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err
	}
	all := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")[1:]
	var args []string
	for i := 0; i < len(all); i++ {
		if all[i] == "-add-fd" {
			i++ // QEMU has made copies of these descriptors: found below by what they lead to
			continue
		}
		args = append(args, all[i])
	}
	files, err := b.lowerFiles(pid)
	if err != nil {
		return err
	}
	for i, a := range args {
		a = fdset.ReplaceAllStringFunc(a, func(m string) string {
			set := strings.TrimPrefix(m, "/dev/fdset/")
			if set == "3" {
				return "{TOP}"
			}
			return files[set]
		})
		switch {
		case strings.HasPrefix(a, "socket,id=qmp"):
			a = "socket,id=qmp,path={DIR}/qmp,server=on,wait=off"
		case strings.HasPrefix(a, "socket,id=console"):
			a = "socket,id=console,path={DIR}/console,server=on,wait=off"
		case strings.HasPrefix(a, "tap,id=net0"):
			a = "tap,id=net0,fd={TAP},vhost=off"
		case strings.HasPrefix(a, "memory-backend-file"):
			a = regexp.MustCompile(`/proc/self/fd/[0-9]+`).ReplaceAllString(a, "/proc/self/fd/{MEM}")
		case a == "defer":
			a = "fd:{STATE}"
		}
		args[i] = a
	}
	b.args = args
	b.mem, err = os.OpenFile(memfdOf(pid), os.O_RDWR, 0)
	return err
}

// lowerFiles finds the base image and the template's layer among a VM's open files; numbers
// are those of Roost's fd sets.
func (b *bare) lowerFiles(pid int) (map[string]string, error) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		switch target, _ := os.Readlink(l); {
		case strings.Contains(target, "/images/blobs/"):
			b.base = target
		case strings.Contains(target, "/images/warm/"):
			b.layer = target
		}
	}
	if b.base == "" || b.layer == "" {
		return nil, fmt.Errorf("process %d has no template open", pid)
	}
	return map[string]string{"1": b.base, "2": b.layer}, nil
}

// memfdOf is the path of a process's memory file.
func memfdOf(pid int) string {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		target, _ := os.Readlink(l)
		st, err := os.Stat(l)
		if strings.HasPrefix(target, "/memfd:") && err == nil && st.Size() == 512<<20 {
			return l
		}
	}
	return ""
}

// findTemplate opens the state that goes with the layer, and reads its token.
func (b *bare) findTemplate(s *server) (err error) {
	dir := filepath.Dir(b.layer)
	var warm struct {
		Token string `json:"control_token"`
	}
	raw, err := os.ReadFile(filepath.Join(dir, "warm.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &warm); err != nil {
		return err
	}
	b.token = warm.Token
	b.state, err = os.Open(filepath.Join(dir, "device.state"))
	return err
}

// makeTap makes a namespace with the gateway's address on a tap, as Roost's slots have.
func (b *bare) makeTap() error {
	return onThread(func() error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		b.ns = ns
		// The guest in the template's memory knows its gateway by this address; with another it
		// would answer into nowhere until it asks again.
		gateway := net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x01}
		tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tap0", HardwareAddr: gateway}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		link, err := netlink.LinkByName("tap0")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.171.0.1/30")
		if err != nil {
			return err
		}
		guest := &netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("10.171.0.2"),
			HardwareAddr: net.HardwareAddr{0x02, 0x72, 0x6f, 0x73, 0x74, 0x02},
		}
		return errors.Join(netlink.LinkSetHardwareAddr(link, gateway), netlink.AddrAdd(link, addr), netlink.LinkSetUp(link), netlink.NeighSet(guest))
	})
}

// onThread runs f on a thread that ends with it, so that its namespace does.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func (b *bare) close() {
	for _, f := range []*os.File{b.state, b.mem} {
		if f != nil {
			_ = f.Close()
		}
	}
	_ = b.ns.Close()
	_ = os.RemoveAll(b.dir)
}

// vm is one restore of a bare.
type vm struct {
	cmd   *exec.Cmd
	qmp   net.Conn
	lines *bufio.Scanner
	dir   string
}

// restore starts a VM and returns when the guest has taken its identity.
func (b *bare) restore(ctx context.Context) (*vm, error) {
	b.n++
	v := &vm{dir: filepath.Join(b.dir, strconv.Itoa(b.n))}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, err
	}
	top := filepath.Join(v.dir, "top.qcow2")
	// -u: the size is given, so qemu-img need not open what is below.
	if out, err := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", b.layer, top, "5G").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("qemu-img: %w: %s", err, out)
	}
	tap, err := b.openTap()
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	if _, err := b.state.Seek(0, 0); err != nil {
		return nil, err
	}
	fill := strings.NewReplacer("{MEM}", "3", "{TAP}", "4", "{STATE}", "5", "{TOP}", top, "{DIR}", v.dir)
	args := make([]string, len(b.args))
	for i, a := range b.args {
		args[i] = fill.Replace(a)
	}
	v.cmd = exec.Command("qemu-system-x86_64", args...)
	v.cmd.ExtraFiles = []*os.File{b.mem, tap, b.state}
	var said bytes.Buffer
	v.cmd.Stderr = &said
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if err := errors.Join(v.load(ctx), b.introduce(ctx)); err != nil {
		v.end()
		return nil, fmt.Errorf("%w; qemu says: %s", err, said.String())
	}
	return v, nil
}

func (b *bare) openTap() (f *os.File, err error) {
	err = onThread(func() error {
		if err := netns.Set(b.ns); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq("tap0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "tap0")
		return nil
	})
	return f, err
}

// load waits for QMP, for the state to be in, and starts the CPUs.
func (v *vm) load(ctx context.Context) (err error) {
	deadline := time.Now().Add(10 * time.Second)
	for v.qmp == nil {
		if v.qmp, err = net.Dial("unix", filepath.Join(v.dir, "qmp")); err != nil && time.Now().After(deadline) {
			return err
		}
		if v.qmp == nil {
			time.Sleep(time.Millisecond)
		}
	}
	v.lines = bufio.NewScanner(v.qmp)
	if err := v.ask(`{"execute":"qmp_capabilities"}`, nil); err != nil {
		return err
	}
	for {
		var status struct{ Return struct{ Status string } }
		if err := v.ask(`{"execute":"query-status"}`, &status); err != nil {
			return err
		}
		if status.Return.Status != "inmigrate" {
			break
		}
	}
	return v.ask(`{"execute":"cont"}`, nil)
}

// ask sends a command and reads up to its answer, past events.
func (v *vm) ask(command string, into any) error {
	if _, err := v.qmp.Write([]byte(command + "\n")); err != nil {
		return err
	}
	for v.lines.Scan() {
		line := v.lines.Bytes()
		switch {
		case bytes.Contains(line, []byte(`"error"`)):
			return fmt.Errorf("%s: %s", command, line)
		case bytes.HasPrefix(line, []byte(`{"return"`)):
			if into == nil {
				return nil
			}
			return json.Unmarshal(line, into)
		}
	}
	return errors.New("qmp ended")
}

// introduce does what a Roost create ends with: the handshake, then the thaw.
func (b *bare) introduce(ctx context.Context) error {
	client := clientIn(b.ns)
	defer client.CloseIdleConnections()
	return introduce(ctx, client, b.token, b.n)
}

// clientIn talks to the guest of a namespace.
func clientIn(ns netns.NsHandle) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (c net.Conn, err error) {
		err = onThread(func() error {
			if err := netns.Set(ns); err != nil {
				return err
			}
			c, err = net.DialTimeout("tcp", "10.171.0.2:49983", 10*time.Second)
			return err
		})
		return c, err
	}}}
}

// bareToken is the guest's access token after introduce.
const bareToken = "bare"

func introduce(ctx context.Context, client *http.Client, token string, n int) error {
	entropy := "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	body := fmt.Sprintf(`{"sandboxId":"barebarebarebarebare","generation":"1","wallClockNs":"%d","entropy":%q,"hostname":"bare",`+
		`"machineId":"%032x","accessToken":%q,"controlToken":"bare-control","defaultUser":"user"}`, time.Now().UnixNano(), entropy, n, bareToken)
	if err := call(ctx, client, "Restore", token, body); err != nil {
		return err
	}
	return call(ctx, client, "Thaw", "bare-control", `{"generation":"1"}`)
}

func call(ctx context.Context, client *http.Client, method, token, body string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://guest/roost.guest.v1.Control/"+method, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Control-Token", token)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", method, resp.Status)
	}
	return nil
}

func (v *vm) end() {
	if v.qmp != nil {
		_ = v.qmp.Close()
	}
	_ = v.cmd.Process.Kill()
	_ = v.cmd.Wait()
	_ = os.RemoveAll(v.dir)
}

// againstBareRestore compares create, up to the guest being ready, with a bare restore.
func (s *server) againstBareRestore(ctx context.Context, pairs int) ([]harness.Result, error) {
	b, err := s.newBare(ctx)
	if err != nil {
		return nil, err
	}
	defer b.close()
	r, err := harness.Run(ctx, harness.Experiment{
		Name: "create to guest ready ÷ the same QEMU restore by a bare script", Unit: harness.Seconds,
		Pairs: pairs, Limit: 1.25, Progress: progress,
		A: func(ctx context.Context) (float64, error) {
			began := time.Now()
			id, err := s.create(ctx, false)
			took := time.Since(began)
			if err != nil {
				return 0, err
			}
			return took.Seconds(), s.delete(ctx, id)
		},
		B: func(ctx context.Context) (float64, error) {
			began := time.Now()
			v, err := b.restore(ctx)
			took := time.Since(began)
			if err != nil {
				return 0, err
			}
			v.end()
			return took.Seconds(), nil
		},
	})
	return []harness.Result{r}, err
}

// againstFullSave compares a pause with QEMU's own save of all RAM into a file: the whole
// call, and the part of it that QEMU's save does too, from stopping the CPUs to the last fsync.
func (s *server) againstFullSave(ctx context.Context, pairs int) ([]harness.Result, error) {
	b, err := s.newBare(ctx)
	if err != nil {
		return nil, err
	}
	defer b.close()
	var out []harness.Result
	for _, c := range []struct {
		part string
		of   func(whole, capture float64) float64
	}{
		{"the whole call", func(whole, _ float64) float64 { return whole }},
		{"from stopping the CPUs to the fsync", func(_, capture float64) float64 { return capture }},
	} {
		r, err := harness.Run(ctx, harness.Experiment{
			Name: "pause of an idle 512 MB sandbox ÷ QEMU's save of its RAM, both fsynced: " + c.part,
			Unit: harness.Seconds, Pairs: pairs, Limit: 0.15, Progress: progress,
			A: func(ctx context.Context) (float64, error) {
				id, err := s.create(ctx, false)
				if err != nil {
					return 0, err
				}
				whole, capture, err := s.timedPause(ctx, id)
				return c.of(whole, capture), errors.Join(err, s.delete(ctx, id))
			},
			B: func(ctx context.Context) (float64, error) {
				v, err := b.restore(ctx)
				if err != nil {
					return 0, err
				}
				defer v.end()
				return v.save()
			},
		})
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// capturePhases are those of a pause between stopping the CPUs and the commit, as the API
// reports them.
var capturePhases = map[string]bool{"freeze": true, "state": true, "disk": true, "memory": true, "publish": true}

// timedPause pauses and returns the seconds of the call and of its capture.
func (s *server) timedPause(ctx context.Context, id string) (whole, capture float64, err error) {
	began := time.Now()
	resp, err := s.api.PauseSandboxWithResponse(ctx, id, v1.PauseSandboxJSONRequestBody{})
	whole = time.Since(began).Seconds()
	if err != nil {
		return 0, 0, err
	}
	if resp.JSON200 == nil || resp.JSON200.Phases == nil {
		return 0, 0, fmt.Errorf("pause: %s", resp.Body)
	}
	for _, p := range *resp.JSON200.Phases {
		if capturePhases[p.Name] {
			capture += p.Ms / 1000
		}
	}
	return whole, capture, nil
}

// save stops the VM and migrates all of it into a file, as savevm-like tools do.
func (v *vm) save() (float64, error) {
	f, err := os.Create(filepath.Join(v.dir, "ram"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	began := time.Now()
	if err := v.ask(`{"execute":"stop"}`, nil); err != nil {
		return 0, err
	}
	if err := v.sendFD(f); err != nil {
		return 0, err
	}
	// Unbounded: QEMU's default would measure a network that is not there.
	if err := v.ask(`{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":0}}`, nil); err != nil {
		return 0, err
	}
	if err := v.ask(`{"execute":"migrate","arguments":{"uri":"fd:ram"}}`, nil); err != nil {
		return 0, err
	}
	for {
		var m struct{ Return struct{ Status string } }
		if err := v.ask(`{"execute":"query-migrate"}`, &m); err != nil {
			return 0, err
		}
		switch m.Return.Status {
		case "completed":
			err := f.Sync()
			return time.Since(began).Seconds(), err
		case "failed", "cancelled":
			return 0, fmt.Errorf("migrate: %s", m.Return.Status)
		}
		time.Sleep(time.Millisecond)
	}
}

// sendFD gives QEMU the file under the name "ram".
func (v *vm) sendFD(f *os.File) error {
	conn := v.qmp.(*net.UnixConn)
	cmd := []byte(`{"execute":"getfd","arguments":{"fdname":"ram"}}` + "\n")
	if _, _, err := conn.WriteMsgUnix(cmd, unix.UnixRights(int(f.Fd())), nil); err != nil {
		return err
	}
	return v.ask("", nil)
}
