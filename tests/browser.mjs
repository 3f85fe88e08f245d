// Open the pages of a built site in Chromium and print one line for everything that fails.
//
//   node tests/browser.mjs SITE [--only=REGEX] [--part=1/4]
//
// Each page is opened as a first visitor opens it, 1280 and 390 pixels wide, light and dark, and on
// paper. Exit: 0 all holds, 1 something fails, 2 something is missing. The npm packages
// playwright-core and axe-core must be in NODE_PATH; CHROME_PATH or PATH names a Chromium.
// `make site-check` installs the packages and runs this file.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { createRequire } from 'node:module';

const HEAVIEST = 700_000; // bytes of HTML, CSS and scripts of a chapter, without MathJax
const NARROW = { width: 390, height: 844 };
const WIDE = { width: 1280, height: 900 };
const SCROLLERS = 'article pre, article .output, article .pst-scrollable-table-container, article .math, article mjx-container[display="true"]';

const flags = process.argv.slice(2).filter((word) => word.startsWith('--'));
const flag = (name) => flags.find((word) => word.startsWith(`--${name}=`))?.split('=').slice(1).join('=');
const give_up = (message) => { console.error(message); process.exit(2); };

const site = path.resolve(process.argv.slice(2).find((word) => !word.startsWith('--')) ?? give_up('name the folder of the site'));
if (!fs.existsSync(path.join(site, 'index.html'))) give_up(`${site} holds no index.html: build the site first`);
const require = createRequire(import.meta.url);
const load = (name) => { try { return require.resolve(name, { paths: (process.env.NODE_PATH ?? '').split(path.delimiter).filter(Boolean) }); } catch { give_up(`the npm package ${name} is missing: make site-check installs it`); } };
const { chromium } = require(load('playwright-core'));
const axe = fs.readFileSync(load('axe-core'), 'utf8');
const program = process.env.CHROME_PATH || (process.env.PATH ?? '').split(path.delimiter)
  .flatMap((folder) => ['chromium', 'chromium-browser', 'google-chrome'].map((name) => path.join(folder, name))).find((file) => fs.existsSync(file));
if (!program) give_up('there is no Chromium: install it, or name it in CHROME_PATH');

// A server of the folder, for this machine only, that counts what it sends.
const TYPES = { html: 'text/html; charset=utf-8', css: 'text/css', js: 'text/javascript', mjs: 'text/javascript', json: 'application/json', svg: 'image/svg+xml', png: 'image/png', woff: 'font/woff', woff2: 'font/woff2' };
const file_of = (address) => {
  const file = path.join(site, decodeURIComponent(address));
  return fs.existsSync(file) && fs.statSync(file).isDirectory() ? path.join(file, 'index.html') : file;
};
const server = http.createServer((request, response) => {
  const file = file_of(new URL(request.url, 'http://x').pathname);
  if (!file.startsWith(site) || !fs.existsSync(file)) { response.writeHead(404).end(); return; }
  response.writeHead(200, { 'Content-Type': TYPES[path.extname(file).slice(1)] ?? 'application/octet-stream' });
  fs.createReadStream(file).pipe(response);
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const base = `http://127.0.0.1:${server.address().port}/`;

const below = (folder) => fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
  const file = path.join(folder, entry.name);
  if (entry.isDirectory()) return entry.name.startsWith('_') ? [] : below(file);
  return entry.name.endsWith('.html') ? [path.relative(site, file).split(path.sep).join('/')] : [];
});
let pages = below(site).sort().filter((name) => new RegExp(flag('only') ?? '').test(name));
if (flag('part')) {
  const [part, parts] = flag('part').split('/').map(Number);
  pages = pages.filter((_, i) => i % parts === part - 1);
}

let failures = 0;
const fail = (check, name, what) => { failures += 1; console.log(`${check}\t${name}\t${what}`); };

const anchors = new Map();
const has_anchor = (name, anchor) => {
  if (!anchors.has(name)) anchors.set(name, new Set([...fs.readFileSync(path.join(site, name), 'utf8').matchAll(/\s(?:id|name)="([^"]*)"/g)].map((found) => found[1])));
  return anchors.get(name).has(anchor);
};

const check_links = async (page, name) => {
  for (const [href, written] of await page.$$eval('a[href]', (links) => links.map((a) => [a.href, a.getAttribute('href')]))) {
    if (/\/OWNER\//.test(href)) fail('link', name, `leads to a placeholder: ${written}`);
    if (!href.startsWith(base)) continue;
    const { pathname, hash } = new URL(href);
    const target = path.relative(site, file_of(pathname));
    if (!fs.existsSync(path.join(site, target))) fail('link', name, `no such file: ${written}`);
    else if (hash.length > 1 && target.endsWith('.html') && !has_anchor(target, decodeURIComponent(hash.slice(1)))) fail('link', name, `no such anchor: ${written}`);
  }
};

// axe cannot tell the contrast on a background with a picture, here the shadow that shows that a box
// scrolls: it goes. And axe would take most of its time for the highlighted words of code. Words of one
// class in blocks of one color look the same: the first of each stays, the others become text.
const show_words = (page) => page.evaluate(() => {
  document.head.insertAdjacentHTML('beforeend', '<style>pre, .output, .pst-scrollable-table-container, .math { background-image: none !important }</style>');
  const seen = new Set();
  for (const block of document.querySelectorAll('pre')) {
    const around = `${block.closest('[class*="highlight-"]')?.className} ${block.parentElement.className} ${getComputedStyle(block).backgroundColor}`;
    for (const word of [...block.querySelectorAll('span:not(:has(*))')]) {
      const look = `${around} ${word.parentElement.className} ${word.className} ${word.style.cssText}`;
      if (seen.has(look)) word.replaceWith(word.textContent);
      seen.add(look);
    }
    block.normalize();
  }
});

// The dark pages are the light ones in other colors: there only the rules on colors can tell more.
const COLORS = ['color-contrast', 'link-in-text-block'];
const check_axe = async (page, name, view) => {
  const asked = { resultTypes: ['violations'], ...(view.endsWith('dark') && { runOnly: COLORS }) };
  const found = await page.evaluate(async (options) => (await axe.run(document, options)).violations
    .map(({ id, nodes }) => [id, nodes.length, nodes[0].target.join(' ')]), asked);
  for (const [id, count, first] of found) fail('axe', name, `${view}: ${id}, ${count} times, first ${first}`);
};

// What is wider than its box: the beginning of its text.
const cut = (page) => page.$$eval(SCROLLERS, (boxes) => boxes
  .filter((box) => box.clientWidth && box.scrollWidth > box.clientWidth + 1)
  .map((box) => [`${box.scrollWidth} in ${box.clientWidth} px: ${box.className || box.tagName} ${box.textContent.trim().slice(0, 50).replaceAll(/\s+/g, ' ')}`,
    [box, box.parentElement].some((one) => getComputedStyle(one).backgroundAttachment.includes('local'))]));

// On a phone: what a finger must hit has at least 24 × 24 pixels (WCAG 2.2, 2.5.8), and an equation
// keeps its whole line, its number below it, in letters of at least 13 pixels.
const check_phone = async (page, name) => {
  const small = await page.evaluate(() => {
    const visible = (one) => one.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    const controls = [...document.querySelectorAll('article :is(input, select, button, summary, .map-frame a, a.place, .written .hit), .bd-header-article button')].filter(visible);
    return controls.map((one) => [one, one.closest('label') ?? one]).map(([one, target]) => [one, target.getBoundingClientRect()])
      .filter(([, box]) => Math.min(box.width, box.height) < 23.9)
      .map(([one, box]) => `${one.getAttribute('aria-label') ?? one.name ?? one.className}, ${box.width.toFixed(1)} by ${box.height.toFixed(1)}`);
  });
  for (const what of new Set(small)) fail('target', name, what);
  const narrow = await page.$$eval('article div.math', (all) => all.filter((one) => one.clientWidth).map((one) => {
    const set = one.querySelector('mjx-container'), number = one.querySelector('.eqno');
    const place = set.getBoundingClientRect(), size = parseFloat(getComputedStyle(set).fontSize);
    const beside = number && number.getBoundingClientRect().top < place.bottom - 2;
    return beside || size < 13 || place.width < 0.9 * one.clientWidth ? `${one.id || set.textContent.slice(0, 30)}: ${size} px, ${Math.round(place.width)} of ${one.clientWidth} px` : '';
  }).filter(Boolean));
  for (const what of narrow) fail('equation', name, what);
};

const check_keyboard = async (page, name) => {
  const button = page.locator('.theme-switch-button').first();
  if (await button.count()) {
    await button.focus();
    const seen = new Set();
    for (let i = 0; i < 3; i += 1) {
      await page.keyboard.press('Enter');
      seen.add(await page.evaluate(() => document.documentElement.dataset.mode));
    }
    if (seen.size !== 3) fail('keyboard', name, `the color mode changes once, then the button has lost the focus: ${[...seen]}`);
    await page.evaluate(() => { localStorage.clear(); });
  }
  await page.keyboard.press('Tab');
  const unseen = await page.evaluate(() => {
    const kinds = ['.theme-switch-button', '.dropdown-toggle', '.search-button-field', 'article summary', 'article a', '.sidebar-toggle', '.copybtn', 'article pre[tabindex]'];
    return kinds.filter((kind) => {
      const control = [...document.querySelectorAll(kind)].find((one) => one.checkVisibility());
      if (!control) return false;
      control.focus({ focusVisible: true });
      const look = getComputedStyle(control);
      return document.activeElement === control && (look.outlineStyle === 'none' || parseFloat(look.outlineWidth) < 2);
    });
  });
  for (const kind of unseen) fail('keyboard', name, `focus does not show on ${kind}`);
  const unnamed = await page.$$eval('summary', (all) => all.filter((one) => !one.textContent.trim() && !one.ariaLabel).length);
  if (unnamed) fail('keyboard', name, `${unnamed} folds have no name`);
};

// The box that filters the glossary, and addresses of the reference from when it was one page.
const check_own_scripts = async (page, name) => {
  if (/_glossary\.html$/.test(name)) {
    const shown = () => page.$$eval('dl.glossary dd', (all) => all.filter((one) => one.checkVisibility()).length);
    const every = await shown();
    await page.locator('#filter').focus();
    await page.keyboard.type('Padding mask');
    if (await shown() !== 1) fail('glossary', name, `the filter leaves ${await shown()} terms for "Padding mask"`);
    await page.keyboard.press('Escape');
    if (await shown() !== every) fail('glossary', name, 'Escape does not bring the terms back');
  }
  if (/_api\.html$/.test(name)) {
    const other = await page.context().newPage();
    await other.goto(`${base}${name}#transformer_lib.trainer.Trainer`);
    await other.waitForURL(/api\/trainer\.html#transformer_lib\.trainer\.Trainer$/, { timeout: 20_000 })
      .catch(() => fail('reference', name, 'an old address does not lead to the page of its module'));
    await other.close();
  }
};

const browser = await chromium.launch({ executablePath: program, args: ['--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
const check_page = async (name) => {
  const context = await browser.newContext({ viewport: WIDE, colorScheme: 'light', reducedMotion: 'reduce' });
  const page = await context.newPage();
  const outside = new Set(), errors = new Set(), sent = new Map();
  page.on('request', (request) => { if (!request.url().startsWith(base) && !/^(data|blob|about):/.test(request.url())) outside.add(request.url()); });
  page.on('console', (message) => { if (message.type() === 'error') errors.add(message.text()); });
  page.on('pageerror', (error) => errors.add(error.message));
  page.on('response', (response) => {
    const file = file_of(new URL(response.url()).pathname);
    if (response.status() >= 400) errors.add(`${response.status()} ${response.url()}`);
    else if (response.url().startsWith(base) && /\.(html|css|m?js)$/.test(file) && !file.includes('mathjax')) sent.set(file, fs.statSync(file).size);
  });
  await page.goto(base + name, { waitUntil: 'load', timeout: 120_000 });
  await page.evaluate(async () => { window.dispatchEvent(new Event('scroll')); await window.MathJax?.startup?.promise; await document.fonts.ready; await new Promise((done) => setTimeout(done, 300)); });

  const bytes = [...sent.values()].reduce((sum, size) => sum + size, 0);
  if (/^chapters\/\d/.test(name) && bytes > HEAVIEST) fail('weight', name, `${Math.round(bytes / 1000)} kB of HTML, CSS and scripts`);
  const [unset, wrong] = await page.evaluate(() => [document.querySelectorAll('.math').length - document.querySelectorAll('.math mjx-container').length, document.querySelectorAll('mjx-merror, [data-mjx-error]').length]);
  if (unset > 0 || wrong > 0) fail('math', name, `${unset} equations are not set, ${wrong} are errors`);
  await check_links(page, name);

  await page.evaluate(() => document.querySelectorAll('details').forEach((fold) => { fold.open = true; }));
  for (const [what] of await cut(page)) fail('cut', name, what);
  await page.setViewportSize({ width: 680, height: 960 }); // A4 within its margins
  await page.emulateMedia({ media: 'print' });
  const lost = await page.$$eval('article pre', (boxes) => boxes.filter((box) => box.clientWidth && box.scrollWidth > box.clientWidth + 1).map((box) => box.textContent.trim().slice(0, 50)));
  for (const text of lost) fail('paper', name, `cut: ${text}`);
  await page.emulateMedia({ media: null });
  await page.setViewportSize(WIDE);

  await show_words(page);
  await page.evaluate(axe);
  const theme = (value) => page.evaluate((it) => { document.documentElement.dataset.theme = it; document.documentElement.dataset.mode = it; }, value);
  await theme('light');
  await check_axe(page, name, '1280 light');
  // The hidden text of equations, for screen readers, is the same in every view: axe has read it once.
  await page.evaluate(() => document.querySelectorAll('mjx-assistive-mml').forEach((one) => one.remove()));
  await theme('dark');
  await page.waitForTimeout(200);
  await check_axe(page, name, '1280 dark');
  await page.setViewportSize(NARROW);
  await page.waitForTimeout(600); // the theme looks again which boxes scroll
  await check_axe(page, name, '390 dark');
  await theme('light');
  await page.waitForTimeout(200);
  await check_axe(page, name, '390 light');
  const [width, room] = await page.evaluate(() => [document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]);
  if (width > room) fail('sideways', name, `${width} px on a screen of ${room}`);
  for (const [what, shows] of await cut(page)) if (!shows) fail('sideways', name, `nothing shows that this scrolls: ${what}`);
  await check_phone(page, name);

  await page.setViewportSize(WIDE);
  await check_keyboard(page, name);
  await check_own_scripts(page, name);

  for (const url of outside) fail('outside', name, url);
  for (const error of errors) fail('console', name, error.replaceAll(base, ''));
  await context.close();
};

// Three pages at a time: while one waits for its theme or its fonts, the others work.
const waiting = [...pages];
await Promise.all([1, 2, 3].map(async () => {
  while (waiting.length) await check_page(waiting.shift());
}));
await browser.close();
server.close();
console.log(`${pages.length} pages, ${failures} failures`);
process.exit(failures || !pages.length ? 1 : 0);  // no page is no success
