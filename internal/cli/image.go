package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

func (a *app) imageCommand() *cobra.Command {
	k := &kind[api.Image, api.ImageSpec]{
		app: a, singular: "image", plural: "images", resources: (*client.Client).Images,
		meta:   func(i *api.Image) *api.Meta { return &i.Meta },
		header: []string{"NAME", "MODELS", "FORMAT", "SIZE", "SHARED", "SERVERS", "DIGEST", "AGE"},
		row: func(_ style, i *api.Image) []string {
			digest := strings.TrimPrefix(i.Status.Digest, "sha256:")
			return []string{
				i.Name, orDash(models(i)), orDash(i.Status.Format), i.Status.Size.Approx(), yesNo(i.Spec.Shared), fmt.Sprint(i.Status.Users),
				orDash(digest[:min(12, len(digest))]), age(i.Created),
			}
		},
		show: func(_ style, p *pairs, i *api.Image) {
			p.put("Description", i.Spec.Description)
			p.put("Shared", yesNo(i.Spec.Shared))
			p.put("Models", models(i))
			p.put("Format", i.Status.Format)
			p.put("Source", i.Status.Source)
			p.put("Size", i.Status.Size.Approx())
			p.put("Least disk", zeroEmpty(i.Status.MinDisk))
			p.put("Digest", i.Status.Digest)
			p.put("Servers", fmt.Sprint(i.Status.Users))
			if app := i.Status.App; app != nil {
				p.put("Runs", strings.Join(append(append([]string{}, app.Entrypoint...), app.Args...), " "))
			}
		},
		filters: []string{"name"},
	}
	return noun("image", "What root disks are made from", []string{"images"},
		k.list(), k.showCommand(), k.importImage(), k.buildImage(), k.edit(), k.delete())
}

func models(i *api.Image) string {
	var out []string
	for _, m := range i.Status.Models {
		out = append(out, string(m))
	}
	return strings.Join(out, ",")
}

func (k *kind[T, S]) importImage() *cobra.Command {
	var i client.Import
	var labelled []string
	cmd := &cobra.Command{
		Use: "import NAME [FILE|-]", Short: "Import an image: root tree, qcow2, raw, ISO, OCI layout, docker archive, or from a registry",
		Example: "  croft image import debian ./debian-12.qcow2\n  croft image import nginx --registry localhost:5000/nginx:1",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef("NAME is missing: %s", cmd.UseLine())
			case len(args) > 2, len(args) == 2 && i.Registry != "":
				return usagef("%q is too much: %s", args[len(args)-1], cmd.UseLine())
			case len(args) == 1 && i.Registry == "":
				return usagef("FILE is missing: give a file, - for standard input, or --registry")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if i.Labels, err = keyValues("--label", labelled); err != nil {
				return err
			}
			c, err := k.client()
			if err != nil {
				return err
			}
			i.Name = args[0]
			line := k.progressLine(cmd, i.Name)
			if len(args) == 2 {
				done, err := openUpload(cmd, args[1], &i, line)
				if err != nil {
					return err
				}
				defer done()
			}
			line.say("importing")
			job, err := c.Import(cmd.Context(), k.tenant, i)
			if err != nil {
				line.end()
				return err
			}
			return k.followJob(cmd, job, line, "imported")
		},
	}
	cmd.Flags().StringVar(&i.Registry, "registry", "", "OCI reference to import")
	cmd.Flags().BoolVar(&i.PlainHTTP, "plain-http", false, "ask the registry over HTTP")
	cmd.Flags().BoolVar(&i.Shared, "shared", false, "visible to every tenant (operator)")
	cmd.Flags().StringArrayVarP(&labelled, "label", "l", nil, "label, key=value; repeatable")
	return cmd
}

// openUpload makes a file the body of an import, and shows how far it is.
func openUpload(cmd *cobra.Command, path string, i *client.Import, line *progress) (done func(), err error) {
	if path == "-" {
		i.Body = io.NopCloser(cmd.InOrStdin())
		return func() {}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil || info.IsDir() {
		f.Close() //nolint:errcheck // nothing was read
		return nil, hinted{fmt.Errorf("%s is no file", path), "pack a directory first: tar -C DIR -cf - . | croft image import NAME -"}
	}
	i.Body, i.Size = f, info.Size()
	if line.tty {
		last := time.Time{}
		i.Progress = func(sent int64) {
			if time.Since(last) > 100*time.Millisecond || sent == i.Size {
				last = time.Now()
				line.say(fmt.Sprintf("sending %d%% of %s", sent*100/max(i.Size, 1), api.Bytes(i.Size).Approx()))
			}
		}
	}
	return func() { f.Close() }, nil //nolint:errcheck // it was only read
}

func (k *kind[T, S]) buildImage() *cobra.Command {
	var name string
	var shared bool
	cmd := &cobra.Command{
		Use: "build micro|debian-12", Short: "Build an image from Debian's packages", Args: exactly("micro|debian-12"),
		ValidArgs: []string{"micro", "debian-12"},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := k.client()
			if err != nil {
				return err
			}
			if name == "" {
				name = args[0]
			}
			line := k.progressLine(cmd, name)
			line.say("building")
			job, err := c.Build(cmd.Context(), k.tenant, name, args[0], shared)
			if err != nil {
				line.end()
				return err
			}
			return k.followJob(cmd, job, line, "built")
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the image (default: what is built)")
	cmd.Flags().BoolVar(&shared, "shared", false, "visible to every tenant (operator)")
	return cmd
}

func (a *app) progressLine(cmd *cobra.Command, name string) *progress {
	if a.output != "table" {
		return newProgress(cmd.ErrOrStderr(), name)
	}
	return newProgress(cmd.OutOrStdout(), name)
}

// followJob waits until a job of the tenant has ended, and says how.
func (a *app) followJob(cmd *cobra.Command, job *api.Job, line *progress, done string) error {
	job, err := a.awaitJob(cmd, a.tenant, job, line, done)
	if err == nil && a.output != "table" {
		return a.print(cmd.OutOrStdout(), job)
	}
	return err
}

// awaitJob waits until a job has ended, and returns it if it did what it should.
func (a *app) awaitJob(cmd *cobra.Command, tenant string, job *api.Job, line *progress, done string) (*api.Job, error) {
	began := now()
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	if job.Status.Phase == api.JobRunning {
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		for change, err := range c.Jobs(tenant).Watch(ctx, client.ListOptions{}, 0) {
			if err != nil {
				line.end()
				return nil, err
			}
			if change.Object.ID != job.ID {
				continue
			}
			job = &change.Object
			if job.Status.Phase != api.JobRunning {
				break
			}
			if job.Status.Step != "" {
				step := job.Status.Step
				if line.tty && job.Status.Progress > 0 {
					step += fmt.Sprintf(" %d%%", job.Status.Progress)
				}
				line.say(step)
			}
		}
	}
	if job.Status.Phase == api.JobFailed {
		line.finish(styleOf(line.w).paint(red, "failed"))
		if job.Status.Code != "" {
			return nil, api.Errorf(job.Status.Code, "%s", job.Status.Error)
		}
		return nil, errors.New(job.Status.Error)
	}
	took := now().Sub(began)
	if end := job.Status.Finished; !end.IsZero() && end.Sub(job.Created) > took {
		took = end.Sub(job.Created)
	}
	line.finish(fmt.Sprintf("%s (%.1f s)", done, took.Seconds()))
	return job, nil
}
