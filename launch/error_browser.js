// Filters and shows the tweets of an error page. What is quoted goes into the page as text only, never as markup.
'use strict';

const PAGE = 100;
const data = JSON.parse(document.getElementById('data').textContent);
const form = document.getElementById('filters');
const list = document.getElementById('list');
const more = document.getElementById('more');
const searched = data.tweets.map(tweet =>
  [tweet.id, tweet.tokens.join(' '), ...tweet.lanes.map(lane => (lane ? lane.words.join(' ') : ''))].join('\n').toLowerCase());
let hits = [];
let shown = 0;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function amount(count, noun) {
  return `${count.toLocaleString('en')} ${noun}${count === 1 ? '' : 's'}`;
}

function readFilters() {
  const values = new FormData(form);
  return {
    split: values.get('split'),
    kinds: new Set(values.getAll('kind')),
    type: values.get('type'),
    gold: values.get('gold'),
    predicted: values.get('predicted'),
    image: values.get('image') || '',
    other: Number(values.get('other') || 0),
    text: values.get('text').trim().toLowerCase(),
  };
}

// Which lane's errors the filters look at: this run's, or those of the run that the image words tell apart from it.
// -1: the tweet is not of the kind that is asked for.
function laneLookedAt(tweet, filters) {
  if (!filters.image) return 0;
  if (!tweet.lanes[filters.other]) return -1;
  const given = data.lanes[0].given ? 0 : filters.other;
  const without = given ? 0 : filters.other;
  const givenRight = !tweet.lanes[given].errors.length;
  const withoutRight = !tweet.lanes[without].errors.length;
  if (filters.image === 'helped') return givenRight && !withoutRight ? without : -1;
  if (filters.image === 'hurt') return withoutRight && !givenRight ? given : -1;
  return givenRight || withoutRight ? -1 : 0;
}

function matches(tweet, lane, error, filters) {
  const [kind, gold, predicted] = error;
  const goldType = gold < 0 ? null : tweet.gold[gold][2];
  const predictedType = predicted < 0 ? null : tweet.lanes[lane].found[predicted][2];
  return (!filters.kinds.size || filters.kinds.has(data.kinds[kind]))
    && (!filters.type || filters.type === goldType || filters.type === predictedType)
    && (!filters.gold || filters.gold === goldType)
    && (!filters.predicted || filters.predicted === predictedType);
}

function findHits(filters) {
  const found = [];
  data.tweets.forEach((tweet, place) => {
    if (filters.split && data.splits[tweet.split].name !== filters.split) return;
    if (filters.text && !searched[place].includes(filters.text)) return;
    const lane = laneLookedAt(tweet, filters);
    if (lane < 0) return;
    const errors = tweet.lanes[lane].errors.filter(error => matches(tweet, lane, error, filters));
    if (errors.length) found.push({tweet, lane, errors, other: filters.other});
  });
  return found;
}

// What a lane writes at each token: the type where a span starts, a line through it, dashed where gold has no such span.
function cellsOf(spans, size, wrong) {
  const cells = Array.from({length: size}, () => ({label: '', className: ''}));
  spans.forEach(([start, end, type], place) => {
    for (let token = start; token < end; token++) {
      const bad = wrong.has(place);
      if (token === start) cells[token].label = bad ? `${type} ✗` : type;
      cells[token].className = `in${token + 1 < end ? ' on' : ''}${bad ? ' bad' : ''}`;
    }
  });
  return cells;
}

function textOf(tweet, lanes) {
  const size = tweet.tokens.length;
  const gold = cellsOf(tweet.gold, size, new Set());
  const rows = lanes.map(lane => {
    const {found, errors} = tweet.lanes[lane];
    return cellsOf(found, size, new Set(errors.map(([, , predicted]) => predicted)));
  });
  const text = element('div', 'text');
  text.dir = 'auto';
  const mark = (name, cell) => {
    const span = element('span', `${name} ${cell.className}`, cell.label);
    span.setAttribute('aria-hidden', 'true'); // the list of errors says it
    return span;
  };
  tweet.tokens.forEach((word, place) => {
    const token = element('span', 'token', mark('g', gold[place]), element('bdi', '', word));
    if ([gold, ...rows].some(cells => cells[place].className))
      rows.forEach((cells, row) => token.append(mark(`p${lanes[row]}`, cells[place])));
    text.append(token, ' ');
  });
  return text;
}

function errorItem({tweet, lane, errors}, error) {
  const [kind, gold, predicted] = error;
  const item = element('li', errors.includes(error) ? 'hit' : '', element('b', '', data.kinds[kind]), ' ');
  const found = tweet.lanes[lane].found[predicted];
  const words = span => element('bdi', '', tweet.tokens.slice(span[0], span[1]).join(' '));
  if (gold >= 0) {
    const [start, end, type] = tweet.gold[gold];
    item.append(words(tweet.gold[gold]), ' ', element('i', 'of-gold', type));
    if (found) item.append(' → ');
    if (found && (found[0] !== start || found[1] !== end)) item.append(words(found), ' ');
  } else {
    item.append(words(found), ' ');
  }
  if (found) item.append(element('i', `of-p${lane}`, found[2]));
  return item;
}

function tweetItem(hit) {
  const {tweet, lane, other} = hit;
  const lanes = [...new Set([0, other])].filter(place => tweet.lanes[place]);
  const looked = lane ? `errors of ${data.lanes[lane].run}` : '';
  const head = element('p', 'verdict', element('span', '', looked), element('span', '', tweet.id));
  const item = element('li', 'tweet', head, textOf(tweet, lanes));
  item.tabIndex = -1;
  for (const place of lanes) {
    const words = tweet.lanes[place].words;
    if (!words.length) continue;
    const line = element('p', 'words', lanes.length > 1 ? `${data.lanes[place].name}: ` : '');
    for (const word of words) line.append(element('span', 'chip word', element('bdi', '', word)), ' ');
    item.append(line);
  }
  item.append(element('ul', 'errors', ...tweet.lanes[lane].errors.map(error => errorItem(hit, error))));
  return item;
}

function showMore() {
  const next = hits.slice(shown, shown + PAGE).map(tweetItem);
  list.append(...next);
  shown += next.length;
  const left = hits.length - shown;
  more.hidden = !left;
  more.textContent = `Show ${Math.min(PAGE, left)} more of ${left.toLocaleString('en')}`;
  return next;
}

function update() {
  const filters = readFilters();
  hits = findHits(filters);
  shown = 0;
  list.replaceChildren();
  showMore();
  const all = data.splits.filter(split => !filters.split || split.name === filters.split);
  const tweets = all.reduce((sum, split) => sum + split.tweets, 0);
  const errors = hits.reduce((sum, hit) => sum + hit.errors.length, 0);
  document.getElementById('count').textContent =
    `${amount(errors, 'error')} in ${hits.length.toLocaleString('en')} of ${amount(tweets, 'tweet')}`;
  for (const part of document.querySelectorAll('[data-split]'))
    part.hidden = Boolean(filters.split) && part.dataset.split !== filters.split;
  for (const part of document.querySelectorAll('[data-lane]'))
    part.hidden = Number(part.dataset.lane) !== filters.other;
}

// A number of a table: its split, kinds and types alone, so that as many errors are found as it says.
function showCell(button) {
  form.reset();
  const {kinds, gold, predicted} = button.dataset;
  for (const box of form.querySelectorAll('[name=kind]')) box.checked = kinds.split('|').includes(box.value);
  form.elements.gold.value = gold;
  form.elements.predicted.value = predicted;
  form.querySelector(`[name=split][value=${button.closest('[data-split]').dataset.split}]`).checked = true;
  update();
  document.getElementById('tweets').scrollIntoView();
  document.getElementById('count').focus();
}

form.hidden = false;
form.addEventListener('input', update);
form.addEventListener('submit', event => event.preventDefault());
form.addEventListener('reset', () => setTimeout(update)); // the event comes before the fields are reset
more.addEventListener('click', () => showMore()[0].focus());
for (const button of document.querySelectorAll('[data-kinds]')) button.addEventListener('click', () => showCell(button));
update();
