package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/server"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/vmm/firecracker"
)

// defaultListen is where `roost up` serves its API.
const defaultListen = "127.0.0.1:8350"

// upOptions are the flags of `roost up`.
type upOptions struct {
	data, listen, cache string
	runtime, accel      string
	// firecracker and jailer are paths; "" looks for them.
	firecracker, jailer string
	// diskRate and netRate bound each of Firecracker's VMs, in MB a second; 0 is no bound.
	diskRate, netRate  int64
	logFile, readyFile string
	resolvers          []string
	subnet             string
	pool               int
	verbose            bool
}

func upCommand() *cobra.Command {
	var opts upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run Roost on this machine: control plane, host agent and API in one process",
		Long: `Run Roost on this machine: control plane, host agent and API in one process.

The first start builds the base template, which takes a minute or two, and makes an API key,
which it prints once and keeps in client.json for the roost command on this machine. Stopping
it (Ctrl-C, SIGTERM, even kill -9) leaves sandboxes running; the next start adopts them.`,
		Example: `  roost up
  roost up --data /srv/roost --listen 0.0.0.0:8350`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return up(cmd.Context(), opts, cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&opts.data, "data", dataDir(), "where everything is kept (ROOST_DATA)")
	f.StringVar(&opts.listen, "listen", defaultListen, "address of the API")
	f.StringVar(&opts.cache, "download-cache", downloadCache, "where template builds keep downloads")
	f.StringVar(&opts.runtime, "runtime", cmp.Or(os.Getenv("ROOST_RUNTIME"), runtimeAuto),
		"what runs sandboxes that ask for nothing else: auto, "+anyOf(runtimeNames)+" (ROOST_RUNTIME); auto tries each and takes the strongest isolation: Firecracker on KVM, QEMU on KVM, gVisor, QEMU without KVM")
	f.StringVar(&opts.accel, "accel", os.Getenv("ROOST_ACCEL"), "how QEMU runs guests: auto, kvm or tcg (ROOST_ACCEL); auto boots a guest under KVM to see whether that works")
	f.StringVar(&opts.firecracker, "firecracker", os.Getenv(firecracker.EnvBinary), "path of firecracker, 1.15.1 or later ("+firecracker.EnvBinary+"; default: beside roost, or in PATH)")
	f.StringVar(&opts.jailer, "jailer", os.Getenv(firecracker.EnvJailer), "path of jailer, of the same release ("+firecracker.EnvJailer+"; default: beside roost, or in PATH)")
	f.Int64Var(&opts.diskRate, "vm-disk-rate", 0, "MB a second that each of Firecracker's VMs may read and write on its disk; 0 is no bound")
	f.Int64Var(&opts.netRate, "vm-net-rate", 0, "MB a second that each of Firecracker's VMs may send, and receive; 0 is no bound")
	f.StringVar(&opts.logFile, "log-file", "", "write the log there instead of standard error")
	f.StringVar(&opts.readyFile, "ready-file", "", "write the API's address there when it serves")
	f.StringSliceVar(&opts.resolvers, "resolver", nil, "DNS server for sandboxes, IP or IP:port (default: the host's)")
	f.StringVar(&opts.subnet, "subnet", "", "IPv4 range for sandboxes' uplinks, /18 or larger is plenty (default: a free one in 10.128.0.0/9, kept)")
	f.IntVar(&opts.pool, "slot-pool", 4, "network slots kept ready")
	f.BoolVar(&opts.verbose, "verbose", false, "log debugging detail")
	return cmd
}

// anyOf lists alternatives: "a, b or c".
func anyOf(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

// up runs until a signal ends it.
func up(ctx context.Context, opts upOptions, out io.Writer) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.PermissionDenied, "start", "roost", "not root").
			WithHint("run it as root: it makes namespaces, taps and uids")
	}
	if !slices.Contains([]string{"", "auto", "kvm", "tcg"}, opts.accel) {
		return fault.New(fault.Invalid, "start", "roost", fmt.Sprintf("--accel is %q", opts.accel)).
			WithHint("it must be auto, kvm or tcg")
	}
	if !slices.Contains(append([]string{runtimeAuto}, runtimeNames...), opts.runtime) {
		return fault.New(fault.Invalid, "start", "roost", fmt.Sprintf("--runtime is %q", opts.runtime)).
			WithHint("it must be auto, " + anyOf(runtimeNames))
	}
	if opts.diskRate < 0 || opts.netRate < 0 {
		return fault.New(fault.Invalid, "start", "roost", fmt.Sprintf("--vm-disk-rate %d, --vm-net-rate %d", opts.diskRate, opts.netRate)).
			WithHint("a rate is a number of MB a second, or 0 for no bound")
	}
	log, closeLog, err := openLog(opts)
	if err != nil {
		return err
	}
	defer closeLog()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if opts.data, err = realData(opts.data); err != nil {
		return err
	}
	tell := teller{out: out}
	host, err := startHost(ctx, opts, log, tell)
	if err != nil {
		return err
	}
	defer host.Stop()
	control, err := startControl(ctx, opts, log)
	if err != nil {
		return err
	}
	defer control.Stop()
	if err := announce(opts, host, control, out); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// realData is the name of a data directory that stays when the links which lead to it change:
// records and templates hold it. Where that is too long for sockets, the link is there to shorten
// it, and the name given stays.
func realData(path string) (string, error) {
	given, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	// What does not exist yet is made at the end of what does.
	for at, rest := given, ""; ; at, rest = filepath.Dir(at), filepath.Join(filepath.Base(at), rest) {
		found, err := filepath.EvalSymlinks(at)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return "", fault.Wrap(err, "find", "data directory "+given)
		}
		if real := filepath.Join(found, rest); paths.Data(real).Validate() == nil {
			return real, nil
		}
		return given, nil
	}
}

// startControl brings up the control plane over the agent's socket.
func startControl(ctx context.Context, opts upOptions, log *slog.Logger) (*server.Server, error) {
	data := paths.Data(opts.data)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", data.AgentSocket())
		},
		MaxIdleConnsPerHost: 64,
		DisableCompression:  true,
	}
	const base = "http://agent"
	if err := os.MkdirAll(data.Control(), 0o700); err != nil {
		return nil, fault.Wrap(err, "make", "control directory")
	}
	s, err := server.New(server.Config{
		DataDir: data.Control(), Listen: opts.listen,
		Host:      hostv1connect.NewHostServiceClient(&http.Client{Transport: transport}, base),
		ProxyBase: base, ProxyTransport: transport,
		Logger: log, Version: version,
	})
	if err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// announce tells people and programs where Roost serves.
func announce(opts upOptions, host *hostSide, control *server.Server, out io.Writer) error {
	url := "http://" + control.Addr().String()
	data := paths.Data(opts.data)
	key := control.FirstKey()
	if err := saveClient(data.Client(), url, key); err != nil {
		return err
	}
	host.runtimes.tell(out)
	fmt.Fprintf(out, "API      %s\n", url)
	if key != "" {
		fmt.Fprintf(out, "key      %s   (shown once; kept in %s)\n", key, data.Client())
	}
	if opts.readyFile == "" {
		return nil
	}
	tmp := opts.readyFile + ".tmp"
	return errors.Join(os.WriteFile(tmp, []byte(url+"\n"), 0o600), os.Rename(tmp, opts.readyFile))
}

// saveClient keeps address and key for the roost command on this machine. Without a new key
// the old one stays.
func saveClient(path, url, key string) error {
	var c struct {
		URL string `json:"url"`
		Key string `json:"key"`
	}
	if raw, err := os.ReadFile(path); err == nil {
		_ = json.Unmarshal(raw, &c) // a damaged file is replaced
	}
	c.URL = url
	if key != "" {
		c.Key = key
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return fault.Wrap(os.WriteFile(path, raw, 0o600), "write", "client credentials")
}

func openLog(opts upOptions) (*slog.Logger, func(), error) {
	w, closeLog := io.Writer(os.Stderr), func() {}
	if opts.logFile != "" {
		f, err := os.OpenFile(opts.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fault.Wrap(err, "open", "log file")
		}
		w, closeLog = f, func() { _ = f.Close() }
	}
	level := slog.LevelInfo
	if opts.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})), closeLog, nil
}
