package cli

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the versions of this program and of the server",
		Long:    "Show the versions of this program and of the server. A server that does not answer is no error.",
		Example: "  roost version\n  roost version --json",
		Args:    takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return interruptible(cmd.Context(), a.version)
		},
	}
}

// versions is the JSON document of version.
type versions struct {
	Client clientVersion `json:"client"`
	Server serverVersion `json:"server"`
}

type clientVersion struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

type serverVersion struct {
	URL     string    `json:"url,omitempty"`
	Version string    `json:"version,omitempty"`
	Error   *v1.Error `json:"error,omitempty"`
}

func (a *app) version(ctx context.Context) error {
	out := versions{
		Client: clientVersion{a.opts.Version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH},
		Server: a.serverVersion(ctx),
	}
	if a.json {
		return printJSON(os.Stdout, out)
	}
	_, _ = fmt.Fprintf(os.Stdout, "client %s (%s, %s)\n", out.Client.Version, out.Client.Go, out.Client.Platform)
	if out.Server.Error != nil {
		_, _ = fmt.Fprintf(os.Stdout, "server: %s\n", printable(out.Server.Error.Message))
		return nil
	}
	_, err := fmt.Fprintf(os.Stdout, "server %s (%s)\n", printable(out.Server.Version), out.Server.URL)
	return err
}

// serverVersion asks without a key: /health needs none, so an address is enough.
func (a *app) serverVersion(ctx context.Context) serverVersion {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := a.keyless()
	if err != nil {
		failure := apiError(err)
		return serverVersion{Error: &failure}
	}
	health, err := answer[v1.Health](c.api.GetHealthWithResponse(ctx))
	if err != nil {
		failure := apiError(err)
		return serverVersion{URL: c.URL, Error: &failure}
	}
	return serverVersion{URL: c.URL, Version: health.Version}
}

// keyless is a client that sends no key.
func (a *app) keyless() (*client, error) {
	if address := firstOf(a.url, os.Getenv("ROOST_URL")); address != "" {
		clean, err := cleanURL(address)
		if err != nil {
			return nil, err
		}
		return newClient(credentials{URL: clean})
	}
	creds, err := a.credentials()
	if err != nil {
		return nil, err
	}
	return newClient(credentials{URL: creds.URL})
}
